"""The functions that programs of XLA's call, called as XLA does, without XLA.

Frames are made by hand after python/src/xla_ffi_abi.h; what XLA itself makes of them is tested in
test_xla_ffi_jax.py.
"""

from __future__ import annotations

import ctypes
import gc
import os
import threading
from collections.abc import Callable, Sequence

import numpy as np
import pytest

import tensorkey as tk
from tensorkey import _core
from tensorkey._fingerprint import content_of, weights_digest

ROWS, WIDTH, CHUNK, OUT = 70, 5, 32, 3
ABOUT, WEIGHTS = b"a" * 32, b"w" * 32
TYPES = {"int32": 4, "int64": 5, "uint8": 6, "float16": 10, "float32": 11, "int4": 21}
INVALID_ARGUMENT, UNIMPLEMENTED = 3, 12
Arrays = Sequence[np.ndarray]


# --- XLA's side


class Version(ctypes.Structure):
    _fields_ = [("size", ctypes.c_size_t), ("extensions", ctypes.c_void_p)]
    _fields_ += [("major", ctypes.c_int), ("minor", ctypes.c_int)]


class FailureArgs(ctypes.Structure):
    _fields_ = [("size", ctypes.c_size_t), ("extensions", ctypes.c_void_p)]
    _fields_ += [("message", ctypes.c_char_p), ("code", ctypes.c_uint)]


CreateFailure = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.POINTER(FailureArgs))


class Api(ctypes.Structure):
    _fields_ = [("size", ctypes.c_size_t), ("extensions", ctypes.c_void_p), ("version", Version)]
    _fields_ += [("internal", ctypes.c_void_p), ("create_failure", CreateFailure)]


class Buffer(ctypes.Structure):
    _fields_ = [("size", ctypes.c_size_t), ("extensions", ctypes.c_void_p)]
    _fields_ += [("dtype", ctypes.c_uint), ("data", ctypes.c_void_p)]
    _fields_ += [("rank", ctypes.c_int64), ("dims", ctypes.POINTER(ctypes.c_int64))]


class Scalar(ctypes.Structure):
    _fields_ = [("dtype", ctypes.c_uint), ("value", ctypes.c_void_p)]


class ByteSpan(ctypes.Structure):
    _fields_ = [("data", ctypes.c_char_p), ("size", ctypes.c_size_t)]


class Values(ctypes.Structure):
    """Arguments or results."""

    _fields_ = [("struct_size", ctypes.c_size_t), ("extensions", ctypes.c_void_p)]
    _fields_ += [("size", ctypes.c_int64), ("types", ctypes.POINTER(ctypes.c_uint))]
    _fields_ += [("values", ctypes.POINTER(ctypes.c_void_p))]


class Attrs(ctypes.Structure):
    _fields_ = [("struct_size", ctypes.c_size_t), ("extensions", ctypes.c_void_p)]
    _fields_ += [("size", ctypes.c_int64), ("types", ctypes.POINTER(ctypes.c_uint))]
    _fields_ += [("names", ctypes.POINTER(ctypes.POINTER(ByteSpan)))]
    _fields_ += [("values", ctypes.POINTER(ctypes.c_void_p))]


class Frame(ctypes.Structure):
    _fields_ = [("struct_size", ctypes.c_size_t), ("extensions", ctypes.c_void_p)]
    _fields_ += [("api", ctypes.POINTER(Api)), ("context", ctypes.c_void_p)]
    _fields_ += [("stage", ctypes.c_uint), ("args", Values), ("rets", Values), ("attrs", Attrs)]


class Metadata(ctypes.Structure):
    _fields_ = [("struct_size", ctypes.c_size_t), ("version", Version)]
    _fields_ += [("traits", ctypes.c_uint), ("state_type", ctypes.c_int64)]


class MetadataExtension(ctypes.Structure):
    _fields_ = [("size", ctypes.c_size_t), ("type", ctypes.c_uint), ("next", ctypes.c_void_p)]
    _fields_ += [("metadata", ctypes.POINTER(Metadata))]


Handler = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.POINTER(Frame))
pointer_of = ctypes.pythonapi.PyCapsule_GetPointer
pointer_of.restype, pointer_of.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
HANDLERS = {
    name.removeprefix("tensorkey_"): Handler(pointer_of(capsule, None))
    for name, capsule in _core.xla_handlers().items()
}


class XlaError(Exception):
    """What XLA would make of a failure: its code and its text."""


def buffer_of(array: np.ndarray, dtype: int | None = None) -> Buffer:
    dims = (ctypes.c_int64 * max(array.ndim, 1))(*array.shape)
    type_ = TYPES[array.dtype.name] if dtype is None else dtype
    data = array.ctypes.data if array.size else None  # as XLA may have it
    buffer = Buffer(ctypes.sizeof(Buffer), None, type_, data, array.ndim, dims)
    buffer.held = array
    return buffer


def values_of(buffers: Sequence[Buffer], kind: int = 1) -> Values:
    count = len(buffers)
    pointers = [ctypes.cast(ctypes.pointer(each), ctypes.c_void_p) for each in buffers]
    values = Values(
        40,
        None,
        count,
        (ctypes.c_uint * count)(*[kind] * count),
        (ctypes.c_void_p * count)(*pointers),
    )
    values.held = buffers
    return values


def attrs_of(name: bytes, value: int, dtype: str = "int64", kind: int = 3) -> Attrs:
    number = np.array(value, dtype)
    scalar = Scalar(TYPES[dtype], number.ctypes.data)
    names = (ctypes.POINTER(ByteSpan) * 1)(ctypes.pointer(ByteSpan(name, len(name))))
    values = (ctypes.c_void_p * 1)(ctypes.cast(ctypes.pointer(scalar), ctypes.c_void_p))
    attrs = Attrs(48, None, 1, (ctypes.c_uint * 1)(kind), names, values)
    attrs.held = (number, scalar)
    return attrs


def invoke(target: str, args: Values, rets: Values, attrs: Attrs) -> None:
    """Call a handler; its failure is raised."""
    failures: list[tuple[int, str]] = []

    def create(given):
        failures.append((given.contents.code, given.contents.message.decode()))
        return 1

    api = Api(0, None, Version(24, None, 0, 3), None, CreateFailure(create))
    frame = Frame(168, None, ctypes.pointer(api), None, 3, args, rets, attrs)
    failed = HANDLERS[target](ctypes.pointer(frame))
    assert bool(failed) == bool(failures)
    if failures:
        raise XlaError(*failures[0])


def call(target: str, handle: int, args: Arrays, rets: Arrays) -> None:
    invoke(
        target,
        values_of([*map(buffer_of, args)]),
        values_of([*map(buffer_of, rets)]),
        attrs_of(b"handle", handle),
    )


# --- A program


class Told:
    """What Python was told."""

    def __init__(self) -> None:
        self.weights: list[bytes] = []
        self.deviations: list[tuple[int, float, str]] = []
        self.error: Exception | None = None

    def deviated(self, found: tuple[int, float, str]) -> None:
        self.deviations.append(found)
        if self.error is not None:
            raise self.error


def engine_of(**options) -> _core.LayerEngine:
    return _core.LayerEngine(tk.ActivationCache("8 MiB"), **({"bypass": "never"} | options))


def known(digest: bytes) -> list[tuple[bytes, list[bytes], list[int], list]]:
    return [(digest, [], [], [])]


def entered(engine, told: Told | None = None, **options) -> _core.XlaCall:
    told = Told() if told is None else told
    given = {
        "paths": ["x"],
        "about": ABOUT,
        "secret": None,
        "chunk": CHUNK,
        "leaves": [("float32", (OUT,))],
        "weights": known(WEIGHTS),
        "passed": False,
        "looked_up": told.weights.append,
        "deviated": told.deviated,
    }
    return _core.XlaCall(engine, **(given | options))


def layer(x: np.ndarray) -> np.ndarray:
    return np.stack([x[:, 0] * 2, x[:, 1] - 1, x[:, -1]], 1).astype(np.float32)


def batch(seed: int, rows: int = ROWS) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 1 << 30, (rows, WIDTH)).astype(np.int32)


class Program:
    """A traced call, and how many chunks it ran."""

    def __init__(
        self, handle: int, run: Callable[[np.ndarray], np.ndarray] = layer, chunk: int = CHUNK
    ) -> None:
        self.handle, self.run, self.chunk = handle, run, chunk
        self.chunks = 0
        self.wholes = 0

    def look_up(self, x: np.ndarray, *digest: np.ndarray) -> list[np.ndarray]:
        """Ticket, whole, chunks, positions, targets, sources and the table."""
        room = _core.LayerTask.capacity(len(x), self.chunk, True) * self.chunk
        numbers = [np.full((), -7, np.int32) for _ in range(3)]
        places = [np.full(room, -7, np.int32) for _ in range(2)]
        sources = np.full(len(x), -7, np.int32)
        table = np.full((len(x), OUT), np.nan, np.float32)
        told = [*numbers, *places, sources, table]
        call("look_up", self.handle, [x, *digest], told)
        return told

    def deliver(self, ticket: object, number: int, out: np.ndarray) -> None:
        token = np.full((), -7, np.int32)
        call(
            "deliver",
            self.handle,
            [np.array(ticket, np.int32), np.array(number, np.int32), out],
            [token],
        )
        assert token == 0

    def __call__(self, x: np.ndarray, *digest: np.ndarray) -> np.ndarray:
        ticket, whole, chunks, positions, targets, sources, table = self.look_up(x, *digest)
        if whole:
            self.wholes += 1
            every = self.run(x)
            self.deliver(ticket, -1, every)
            if whole == 1:
                assert chunks == 0
                return every
        assert (targets[chunks * self.chunk :] == len(x)).all()
        for number in range(int(chunks)):
            part = slice(number * self.chunk, (number + 1) * self.chunk)
            out = self.run(x[positions[part]])
            wanted = targets[part] < len(x)
            table[targets[part][wanted]] = out[wanted]
            self.deliver(ticket, number, out)
            self.chunks += 1
        return table[sources]


# --- Tests


@pytest.mark.parametrize(
    ("runtime", "expected"),
    [
        (None, (0, 1)),
        ((0, 1), (0, 1)),
        ((0, 2), (0, 2)),
        ((0, 3), (0, 3)),
        ((0, 9), (0, 3)),
        ((7, 0), (0, 1)),
    ],
)
def test_a_handler_says_what_it_is(runtime, expected):
    """Never newer than a runtime that has all that we use."""
    for handler in HANDLERS.values():
        metadata = Metadata(40, Version(), 99, 99)
        extension = MetadataExtension(32, 1, None, ctypes.pointer(metadata))
        frame = Frame(168, ctypes.cast(ctypes.pointer(extension), ctypes.c_void_p))
        if runtime is not None:
            frame.api = ctypes.pointer(Api(0, None, Version(24, None, *runtime)))
        assert not handler(ctypes.pointer(frame))
        assert (metadata.version.major, metadata.version.minor) == expected
        assert metadata.traits == 0
        assert metadata.state_type == (0 if expected == (0, 3) else 99)  # older have no such field
        if runtime is not None:
            assert _core.xla_version() == runtime


def test_rows_are_run_once():
    engine, told = engine_of(), Told()
    held = entered(engine, told)
    program, x = Program(held.handle), batch(0)
    x[7] = x[3]
    np.testing.assert_array_equal(program(x), layer(x))
    assert program.wholes == 0
    program.chunks = 0  # with those of the probe
    np.testing.assert_array_equal(program(x[::-1].copy()), layer(x[::-1]))
    assert program.chunks == 0
    other = np.concatenate([x[:40], batch(1, 30)])
    np.testing.assert_array_equal(program(other), layer(other))
    assert program.chunks == 1
    stats = engine.stats()
    assert (stats["misses"], stats["duplicates"], stats["batches"]) == (69 + 30, 3, 3)
    assert stats["errors"] == stats["bypasses"] == {}
    assert told.weights == [WEIGHTS]
    assert stats["seconds_spent"] > 0


def test_python_finds_what_a_program_stored():
    """Under the same keys, as LayerTask is what both are made of."""
    engine = engine_of()
    held = entered(engine)
    x = batch(0)
    Program(held.handle)(x)
    assert engine.missing([x], ["x"], None, ABOUT, WEIGHTS, None) == {}
    task = engine.begin([x], ["x"], ABOUT, WEIGHTS, None, CHUNK, [("float32", (OUT,))])
    assert task.chunks == 0
    assert len(engine.missing([x], ["x"], None, WEIGHTS, ABOUT, None)) == ROWS
    assert len(engine.missing([x], ["x"], None, ABOUT, b"v" * 32, None)) == ROWS
    assert len(engine.missing([x], ["x"], None, ABOUT, WEIGHTS, b"s" * 32)) == ROWS


def test_a_secret_is_in_the_keys():
    engine = engine_of()
    held = entered(engine, secret=b"s" * 32)
    x = batch(0)
    np.testing.assert_array_equal(Program(held.handle)(x), layer(x))
    assert engine.missing([x], ["x"], None, ABOUT, WEIGHTS, b"s" * 32) == {}
    assert len(engine.missing([x], ["x"], None, ABOUT, WEIGHTS, None)) == ROWS


@pytest.mark.parametrize("rows", [0, 1, 33])
def test_batches_of_any_size(rows):
    engine = engine_of()
    held = entered(engine)
    program, x = Program(held.handle), batch(0, rows)
    for _ in range(2):
        np.testing.assert_array_equal(program(x), layer(x))
    assert engine.stats()["misses"] == rows
    assert engine.stats()["errors"] == {}


def test_rows_one_by_one_are_compared_with_their_batch():
    engine = engine_of(chunk=1)
    held = entered(engine, chunk=1)
    program, x = Program(held.handle, chunk=1), batch(0, 20)
    np.testing.assert_array_equal(program(x), layer(x))
    assert program.wholes == 1
    assert program.chunks > 20
    program.chunks = 0
    np.testing.assert_array_equal(program(x), layer(x))
    assert (program.chunks, program.wholes) == (0, 1)
    assert engine.stats()["errors"] == {}


def test_a_layer_whose_rows_depend_on_each_other_is_refused_once():
    engine = engine_of()
    held = entered(engine)
    program = Program(held.handle, lambda x: layer(x) + x.astype(np.float32).mean())
    x = batch(0)
    with pytest.raises(XlaError, match="changes with the rows beside it") as refused:
        program(x)
    assert refused.value.args[0] == UNIMPLEMENTED
    np.testing.assert_array_equal(program(x), program.run(x))  # from now on it runs alone
    [(reason, count)] = engine.stats()["bypasses"].items()
    assert "refused by the probe" in reason
    assert count == 1


def test_what_is_switched_off_runs_alone():
    engine = engine_of()
    held = entered(engine)
    program, x = Program(held.handle), batch(0)
    with tk.disabled():
        np.testing.assert_array_equal(program(x), layer(x))
    engine.mode = "always"
    np.testing.assert_array_equal(program(x), layer(x))
    assert (program.wholes, program.chunks) == (2, 0)
    bypasses = engine.stats()["bypasses"]
    assert bypasses == {"tensorkey.disabled()": 1, "bypass='always'": 1}


def test_a_program_outlives_its_call():
    engine = engine_of()
    held = entered(engine)
    program, x = Program(held.handle), batch(0)
    program(x)
    ticket = program.look_up(batch(1))[0]
    assert ticket > 0
    del held
    gc.collect()
    program.deliver(ticket, 0, layer(x[:CHUNK]))  # of nobody
    np.testing.assert_array_equal(program(x), layer(x))
    assert program.wholes == 1
    digest = np.ones(32, np.uint8)
    call("weights", program.handle, [x], [digest])
    assert not digest.any()


def test_a_call_outlives_its_engine():
    """As far as Python knows of the engine."""
    held = entered(engine_of())
    program, x = Program(held.handle), batch(0)
    gc.collect()
    program(x)
    program.chunks = 0
    np.testing.assert_array_equal(program(x), layer(x))
    assert (program.chunks, program.wholes) == (0, 0)


def test_handles_stand_for_what_calls_mean():
    engine = engine_of()
    first = entered(engine)
    handle = first.handle
    second = entered(engine_of())
    assert second.handle == handle + 1
    del first
    third = entered(engine)
    assert third.handle == handle  # as in the next process
    digests = {handle, second.handle}
    group = (None, [b"a", b"b"], [0, 1], [(b"c", bytes(32))])
    for changed in (
        {"about": b"b" * 32},
        {"weights": known(b"v" * 32)},
        {"chunk": 64},
        {"paths": ["y"]},
        {"leaves": [("float32", (OUT + 1,))]},
        {"leaves": [("float16", (OUT,))]},
        {"weights": [group], "passed": True},
        {"weights": [group[:2] + ([1, 0],) + group[3:]], "passed": True},
        {"weights": [group[:3] + ([],)], "passed": True},
    ):
        digests.add(entered(engine, **changed).handle)
    assert len(digests) == 2 + 9
    secret = {"secret": b"s" * 32}
    held = entered(engine, **secret).handle
    assert held != entered(engine, **secret).handle  # never one that another tenant may have


def test_weights_are_known_by_name_and_content():
    one, two = np.arange(12, dtype=np.float32).reshape(3, 4), np.array(7, np.float32)
    empty = np.zeros((0, 3), np.float32)
    constant = np.arange(3, dtype=np.int32)

    def digested(groups, *arrays) -> bytes:
        held = entered(engine, weights=groups, passed=True)
        out = np.zeros(32, np.uint8)
        for _ in range(2):  # the second time it is known
            call("weights", held.handle, arrays, [out])
        return out.tobytes()

    def group(*names, at=None, fixed=()):
        held = [(name.encode(), content_of(array)) for name, array in fixed]
        return (None, [name.encode() for name in names], at or [*range(len(names))], held)

    def expected(**arrays):
        return weights_digest((name, content_of(array)) for name, array in arrays.items())

    engine = engine_of()
    assert digested([group("z", "é")], one, two) == expected(z=one, é=two)
    assert digested([group("z", "é")], two, one) == expected(z=two, é=one)
    assert digested([group("b", at=[1])], one, empty) == expected(b=empty)
    assert digested([group("b", fixed=[("a", constant)])], one) == expected(b=one, a=constant)
    joined = _core.blake3(WEIGHTS + expected(p=two))
    assert digested([*known(WEIGHTS), group("p", at=[1])], one, two) == joined
    for i in range(40):  # more than are remembered
        changed = one + i
        assert digested([group("b")], changed) == expected(b=changed)


def test_passed_weights_are_in_the_keys():
    engine, told = engine_of(), Told()
    held = entered(engine, told, weights=[(None, [b"w"], [0], [])], passed=True)
    x, digest = batch(0), np.zeros(32, np.uint8)
    program = Program(held.handle)
    for weight in (1.0, 2.0, 1.0):
        factor = np.array(weight, np.float32)
        program.run = lambda x, factor=factor: layer(x) * factor
        call("weights", held.handle, [factor], [digest])
        np.testing.assert_array_equal(program(x, digest), layer(x) * factor)
    assert engine.stats()["misses"] == 2 * ROWS
    assert len(told.weights) == len(set(told.weights)) == 2
    np.testing.assert_array_equal(program(x, np.zeros(32, np.uint8)), layer(x))  # no digest
    assert program.wholes == 1


def test_weights_without_a_digest_are_counted():
    engine = engine_of()
    held = entered(engine, weights=[(None, [b"w"], [3], [])], passed=True)
    digest = np.ones(32, np.uint8)
    call("weights", held.handle, [batch(0)], [digest])
    assert not digest.any()
    assert engine.stats()["errors"] == {"InvalidArgument": 1}


def test_errors_are_counted_by_the_names_of_their_classes():
    engine = engine_of()
    held = entered(engine)
    program, x = Program(held.handle), batch(0)
    ticket = program.look_up(x)[0]
    program.deliver(ticket, 1, layer(x[:CHUNK]))  # out of turn: dropped
    program.deliver(ticket, 0, layer(x[:CHUNK]))
    assert engine.stats()["errors"] == {"InvalidArgument": 1, "LostTicket": 1}
    engine.reset()
    assert engine.stats()["errors"] == {}


def test_calls_that_never_deliver_are_bounded():
    engine = engine_of()
    held = entered(engine)
    program = Program(held.handle)
    Program(held.handle)(batch(0))
    tickets = [int(program.look_up(batch(1 + i))[0]) for i in range(300)]
    assert len(set(tickets)) == 300
    out = layer(batch(1)[:CHUNK])
    program.deliver(tickets[0], 0, out)
    assert engine.stats()["errors"] == {"LostTicket": 1}
    program.deliver(tickets[-1], 0, out)
    assert engine.stats()["errors"] == {"LostTicket": 1}


@pytest.mark.parametrize("loudly", [False, True])
def test_hits_that_are_wrong_are_told(loudly):
    engine, told = engine_of(verify=1.0), Told()
    held = entered(engine, told)
    program, x = Program(held.handle), batch(0)
    program(x)
    assert told.deviations == []
    program.run = lambda x: layer(x) + 1
    if loudly:
        told.error = tk.errors.CorruptEntry("as asked")
        with pytest.raises(XlaError, match="CorruptEntry: as asked"):
            program(x)
        told.error = None  # whose traceback holds this frame
    else:
        program(x)
    [(rows, largest, _)] = told.deviations
    assert 0 < rows <= ROWS
    assert largest > 0
    assert engine.stats()["deviating"] == rows


def test_an_error_of_python_on_the_way_in_runs_the_layer():
    def fail(_: bytes) -> None:
        raise ValueError("not ours")

    engine = engine_of()
    held = entered(engine, looked_up=fail)
    program, x = Program(held.handle), batch(0)
    np.testing.assert_array_equal(program(x), layer(x))
    assert program.wholes == 1
    assert sum(engine.stats()["errors"].values()) == 1


def malformed() -> dict[str, Callable[[int], None]]:
    """Calls that no program of ours makes."""
    x, out = batch(0), np.zeros((CHUNK, OUT), np.float32)
    number = np.zeros((), np.int32)
    told = [number, number, number, *[np.zeros(CHUNK * 9, np.int32)] * 2]
    told += [np.zeros(ROWS, np.int32), np.zeros((ROWS, OUT), np.float32)]

    def values(arrays: Arrays, **kind) -> Values:
        return values_of([*map(buffer_of, arrays)], **kind)

    def asked(args: Values, rets: Values, attrs: Attrs | None = None, target="look_up"):
        return lambda handle: invoke(target, args, rets, attrs or attrs_of(b"handle", handle))

    return {
        "no attribute": asked(values([x]), values(told), attrs_of(b"handles", 1)),
        "a number of another type": asked(
            values([x]), values(told), attrs_of(b"handle", 1, "int32")
        ),
        "an array as attribute": asked(values([x]), values(told), attrs_of(b"handle", 1, kind=1)),
        "no argument": asked(values([]), values(told)),
        "two arguments": asked(values([x, x]), values(told)),
        "another argument": asked(values([x], kind=2), values(told)),
        "another result": asked(values([x]), values(told, kind=2)),
        "no table": asked(values([x]), values(told[:-1])),
        "two tables": asked(values([x]), values([*told, told[-1]])),
        "sources of another type": asked(
            values([x]), values([*told[:5], told[5].astype(np.float32), told[6]])
        ),
        "int4": asked(values_of([buffer_of(x, TYPES["int4"])]), values(told)),
        "a ticket of rank 1": asked(
            values([np.zeros(1, np.int32), number, out]), values([number]), target="deliver"
        ),
        "no outputs": asked(values([number, number]), values([number]), target="deliver"),
        "no token": asked(values([number, number, out]), values([]), target="deliver"),
        "a digest of 16 bytes": asked(
            values([x]), values([np.zeros(16, np.uint8)]), target="weights"
        ),
    }


@pytest.mark.parametrize("what", malformed())
def test_calls_that_no_program_makes_fail(what):
    engine = engine_of()
    held = entered(engine)
    expected = UNIMPLEMENTED if what == "int4" else INVALID_ARGUMENT
    with pytest.raises(XlaError, match=r"\[tensorkey\]") as failed:
        malformed()[what](held.handle)
    assert failed.value.args[0] == expected
    x = batch(0)
    np.testing.assert_array_equal(Program(held.handle)(x), layer(x))


def test_tables_of_another_shape_are_no_answer():
    """A program that was made for other leaves: counted, and nothing is written past the end."""
    engine = engine_of()
    held, other = entered(engine), entered(engine, leaves=[("float32", (OUT, 2))])
    x = batch(0)
    Program(held.handle)(x)
    program = Program(other.handle)
    np.testing.assert_array_equal(program(x), layer(x))
    assert program.wholes == 1
    assert sum(engine.stats()["bypasses"].values()) + sum(engine.stats()["errors"].values()) > 0


def test_what_makes_no_call_is_refused():
    engine = engine_of()
    with pytest.raises(tk.errors.InvalidArgument):
        entered(engine, about=b"short")
    with pytest.raises(tk.errors.InvalidArgument):
        entered(engine, weights=[])
    with pytest.raises(tk.errors.InvalidArgument):
        entered(engine, weights=[(None, [b"w"], [0], [])])  # and not passed
    with pytest.raises(tk.errors.InvalidArgument):
        entered(engine, weights=[(None, [b"w"], [], [])], passed=True)
    with pytest.raises(tk.errors.InvalidArgument):
        entered(engine, secret=b"short")
    with pytest.raises(_core.Bypassed):
        entered(engine, leaves=[("float1", ())])


def hammer(program: Program, seed: int, rounds: int = 20) -> None:
    for i in range(rounds):
        x = np.concatenate([batch(i % 3, 20), batch(100 * seed + i, 20)])
        np.testing.assert_array_equal(program(x), layer(x))


def test_eight_threads_at_once():
    engine = engine_of()
    held = [entered(engine) for _ in range(2)]
    Program(held[0].handle)(batch(0))  # the probe
    failures: list[BaseException] = []

    def work(seed: int) -> None:
        try:
            own = entered(engine)  # calls come and go meanwhile
            hammer(Program(held[seed % 2].handle), 1 + seed)
            hammer(Program(own.handle), 11 + seed, 2)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not failures, failures
    stats = engine.stats()
    assert stats["errors"] == {}
    assert stats["bypasses"] == {}
    assert stats["batches"] == 1 + 8 * 22


@pytest.mark.filterwarnings("ignore:os.fork.. was called:RuntimeWarning")
@pytest.mark.filterwarnings("ignore:This process .*fork:DeprecationWarning")
def test_a_forked_child_goes_on():
    engine = engine_of()
    held = entered(engine)
    program, x = Program(held.handle), batch(0)
    program(x)
    stop = threading.Event()

    def work(seed: int) -> None:
        mine = Program(held.handle)
        while not stop.is_set():
            hammer(mine, seed, 1)

    threads = [threading.Thread(target=work, args=(1 + seed,)) for seed in range(3)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(10):
            child = os.fork()
            if child == 0:
                status = 1
                try:
                    mine = Program(held.handle)
                    fits = np.array_equal(mine(x), layer(x)) and np.array_equal(
                        mine(batch(99)), layer(batch(99))
                    )
                    engine.stats()
                    status = 0 if fits and entered(engine).handle else 2
                finally:
                    os._exit(status)
            _, status = os.waitpid(child, 0)
            assert os.waitstatus_to_exitcode(status) == 0
    finally:
        stop.set()
        for thread in threads:
            thread.join(60)
