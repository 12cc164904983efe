"""Tensors of strangers by ``__dlpack__``: honest ones and hostile ones, made by hand."""

import ctypes
import sys
from collections.abc import Callable

import pytest

import tensorkey as tk
from tensorkey.errors import InvalidArgument, Unsupported

CPU = 1
PADDED = 1 << 2


class Tensor(ctypes.Structure):
    _fields_ = [
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    ]


DELETER = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


class Versioned(ctypes.Structure):
    _fields_ = [
        ("major", ctypes.c_uint32),
        ("minor", ctypes.c_uint32),
        ("context", ctypes.c_void_p),
        ("deleter", DELETER),
        ("flags", ctypes.c_uint64),
        ("tensor", Tensor),
    ]


class Legacy(ctypes.Structure):
    _fields_ = [("tensor", Tensor), ("context", ctypes.c_void_p), ("deleter", DELETER)]


new_capsule: Callable[..., object] = ctypes.pythonapi.PyCapsule_New
new_capsule.restype = ctypes.py_object  # type: ignore[attr-defined]
new_capsule.argtypes = (  # type: ignore[attr-defined]
    ctypes.c_void_p,
    ctypes.c_char_p,
    ctypes.c_void_p,
)


class Exporter:
    """Exports `memory`, of one byte elements, with any field replaced; counts what happens."""

    def __init__(self, memory: bytes = b"abcdef", legacy: bool = False, **fields: object) -> None:
        self.legacy = legacy
        self.deleted = 0
        self.exported = 0
        self.device = (fields.get("device_type", CPU), 0)
        self.memory = ctypes.create_string_buffer(memory, max(len(memory), 1))
        self.shape = fields.pop("shape", (len(memory),))
        self.strides = fields.pop("strides", None)
        self.capsule_name = fields.pop("capsule_name", None)
        self.structure: Versioned | Legacy = Legacy() if legacy else Versioned(major=1, minor=3)
        self.deleter = DELETER(self._delete)
        self.structure.deleter = self.deleter
        tensor = self.structure.tensor
        tensor.data = ctypes.addressof(self.memory)
        tensor.device_type, tensor.code, tensor.bits, tensor.lanes = CPU, 1, 8, 1
        tensor.ndim = len(self.shape)  # type: ignore[arg-type]
        tensor.shape = (ctypes.c_int64 * len(self.shape))(*self.shape)  # type: ignore[arg-type,misc]
        if self.strides is not None:
            tensor.strides = (ctypes.c_int64 * len(self.strides))(*self.strides)  # type: ignore[arg-type,misc]
        for name, value in fields.items():
            setattr(self.structure if hasattr(self.structure, name) else tensor, name, value)

    def _delete(self, pointer: int) -> None:
        assert pointer == ctypes.addressof(self.structure)
        self.deleted += 1

    def __dlpack_device__(self) -> tuple[object, int]:
        return self.device

    def __dlpack__(self, **keywords: object) -> object:
        if self.legacy and keywords:
            raise TypeError("no keywords before DLPack 1.0")
        self.exported += 1
        self.keywords = keywords
        name = b"dltensor" if self.legacy else b"dltensor_versioned"
        self.name = name if self.capsule_name is None else self.capsule_name
        return new_capsule(ctypes.addressof(self.structure), self.name, None)


@pytest.mark.parametrize("legacy", [False, True])
def test_exporters_equal_their_bytes(legacy: bool) -> None:
    x = Exporter(b"abcdef", legacy)
    assert tk.key(x) == tk.key(b"abcdef")
    assert (x.exported, x.deleted) == (1, 1)
    assert tk.structure_key(x) == tk.structure_key(b"fedcba")
    assert (x.exported, x.deleted) == (2, 2)
    assert tk.describe(x).framework == "buffer"
    if not legacy:
        assert x.keywords == {"max_version": (1, 3)}


@pytest.mark.parametrize("legacy", [False, True])
def test_strides_count_elements(legacy: bool) -> None:
    matrix = memoryview(b"abcdef").cast("B", (2, 3))
    transposed = Exporter(b"adbecf", legacy, shape=(2, 3), strides=(1, 2))
    assert tk.key(transposed) == tk.key(matrix)
    wide = Exporter(b"a-d-b-e-c-f-", legacy, shape=(2, 3), strides=(2, 4))
    assert tk.key(wide) == tk.key(matrix)
    words = Exporter(b"aabbccdd", legacy, shape=(2,), strides=(2,), bits=16)
    assert tk.key(words) == tk.key(memoryview(b"aacc").cast("H"))
    offset = Exporter(b"--abcdef", legacy, shape=(6,), byte_offset=2)
    assert tk.key(offset) == tk.key(b"abcdef")


def test_no_deleter_is_allowed() -> None:
    x = Exporter(b"ab")
    x.structure.deleter = type(x.deleter)()
    assert tk.key(x) == tk.key(b"ab")


def test_sub_byte_elements_only_if_padded() -> None:
    packed = Exporter(b"\x01\x0f", code=0, bits=4)
    with pytest.raises(Unsupported, match="packed"):
        tk.key(packed)
    padded = Exporter(b"\x01\x0f", code=0, bits=4, flags=PADDED)
    assert tk.describe(padded).dtype == "int4"
    # Only the low bits count.
    assert tk.key(padded) == tk.key(Exporter(b"\xf1\xff", code=0, bits=4, flags=PADDED))
    with pytest.raises(Unsupported, match="packed"):
        tk.key(Exporter(b"\x01", legacy=True, code=0, bits=4))
    pair = Exporter(b"\x21", code=17, bits=4, lanes=2)
    assert tk.describe(pair).dtype == "float4_e2m1fn_x2"


HUGE = 1 << 62


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize(
    "fields",
    [
        {"ndim": -1},
        {"ndim": -(1 << 31)},
        {"ndim": (1 << 31) - 1},
        {"ndim": 70000},
        {"shape": (-1,)},
        {"shape": (HUGE, HUGE)},
        {"shape": (0, HUGE, HUGE)},
        {"shape": (HUGE,), "bits": 64},
        {"shape": (2,), "strides": (HUGE,), "bits": 64},
        {"shape": (2, 2), "strides": (HUGE, HUGE)},
        {"shape": (3,), "strides": (-HUGE,)},
        {"data": None},
        {"data": None, "byte_offset": 64},
        {"data": (1 << 64) - 2},
        {"byte_offset": (1 << 64) - 1},
        {"byte_offset": 1 << 63},
        {"lanes": 0},
        {"lanes": 2},
        {"code": 255},
        {"code": 3, "bits": 64},
        {"bits": 0},
        {"bits": 128},
        {"code": 2, "bits": 80},
        {"device_type": 2},
        {"device_type": 0},
        {"device_type": -5},
    ],
    ids=str,
)
def test_hostile_fields_are_refused_and_deleted_once(
    fields: dict[str, object], legacy: bool
) -> None:
    x = Exporter(b"abcdef", legacy, **fields)
    with pytest.raises((Unsupported, InvalidArgument)):
        tk.key(x)
    assert x.deleted == x.exported <= 1


@pytest.mark.parametrize("legacy", [False, True])
def test_null_pointers(legacy: bool) -> None:
    x = Exporter(b"abcdef", legacy)
    x.structure.tensor.shape = ctypes.POINTER(ctypes.c_int64)()
    with pytest.raises(InvalidArgument, match="no shape"):
        tk.key(x)
    assert x.deleted == 1
    empty = Exporter(b"", legacy, data=None, shape=(0, 3))
    assert tk.describe(empty).shape == (0, 3)
    scalar = Exporter(b"a", legacy, shape=())
    scalar.structure.tensor.shape = ctypes.POINTER(ctypes.c_int64)()
    assert tk.describe(scalar).shape == ()


def test_another_major_version_is_refused_and_deleted() -> None:
    x = Exporter(b"ab", major=2)
    with pytest.raises(Unsupported, match="version 2; expected 1"):
        tk.key(x)
    assert x.deleted == 1


@pytest.mark.parametrize("name", [b"used_dltensor", b"used_dltensor_versioned", b"other"])
def test_a_used_capsule_is_refused_and_left_alone(name: bytes) -> None:
    x = Exporter(b"ab", capsule_name=name)
    with pytest.raises(Unsupported, match="returned no capsule named dltensor"):
        tk.key(x)
    assert x.deleted == 0


class Failing:
    def __init__(self, error: BaseException) -> None:
        self.error = error

    def __dlpack_device__(self) -> tuple[int, int]:
        return (1, 0)

    def __dlpack__(self, **keywords: object) -> object:
        raise self.error


def test_errors_of_the_exporter() -> None:
    with pytest.raises(Unsupported, match="not now"):
        tk.key(Failing(BufferError("not now")))
    for error in (KeyError("k"), KeyboardInterrupt(), MemoryError()):
        with pytest.raises(type(error)):
            tk.key(Failing(error))


class OnDevice(Exporter):
    """A device tensor that copies itself to the host when asked."""

    def __dlpack_device__(self) -> tuple[object, int]:
        return (2, 3)

    def __dlpack__(self, **keywords: object) -> object:
        self.structure.tensor.device_type = 1 if keywords.get("dl_device") == (1, 0) else 2
        self.structure.tensor.device_id = 0 if keywords.get("dl_device") == (1, 0) else 3
        return super().__dlpack__(**keywords)


def test_a_device_is_asked_for_a_copy_and_counted() -> None:
    x = OnDevice(b"abc")
    assert tk.key(x) == tk.key(b"abc")
    assert tk.describe(x).host_copy
    assert tk.structure_key(x) != tk.structure_key(b"abc")
    assert "dl_device" not in x.keywords
    with pytest.raises(Unsupported, match="from host memory"):
        tk.key(Exporter(b"abc", legacy=True, device_type=2))


def test_references_balance() -> None:
    exporters = [
        Exporter(b"ab"),
        Exporter(b"ab", legacy=True),
        Exporter(b"ab", bits=80),
        Exporter(b"ab", capsule_name=b"other"),
    ]
    for x in exporters:
        before = sys.getrefcount(x)
        for _ in range(200):
            try:
                tk.key(x)
            except Unsupported:
                continue
        assert sys.getrefcount(x) == before
        assert x.deleted == (0 if x.capsule_name else x.exported)
