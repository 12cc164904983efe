"""Programs of JAX that call the core, against those that call Python."""

from __future__ import annotations

import gc
import threading

import numpy as np
import pytest

import tensorkey as tk

jax = pytest.importorskip("jax")

from jax import monitoring  # noqa: E402
from jax import numpy as jnp  # noqa: E402
from jax.experimental.compilation_cache import compilation_cache  # noqa: E402

import tensorkey.jax as tkj  # noqa: E402
from tensorkey import _core, _jax_ffi, _jax_graph  # noqa: E402
from tensorkey._graph import TracedWeights  # noqa: E402

ROWS = 70
WAYS = ["core", "callbacks"]
DTYPES = [
    *("bool", "int8", "int16", "int32", "uint8", "uint16", "uint32"),
    *("float16", "float32", "bfloat16", "complex64"),
    *("float8_e3m4", "float8_e4m3", "float8_e4m3b11fnuz", "float8_e4m3fn"),
    *("float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz", "float8_e8m0fnu"),
]
WIDE = ["int64", "uint64", "float64", "complex128"]


@pytest.fixture(autouse=True)
def on_the_cpu():
    if jax.default_backend() != "cpu":
        pytest.skip("for the CPU")
    assert _jax_ffi.refusal() is None


def choose(monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    if way == "callbacks":
        monkeypatch.setattr(_jax_graph, "native_call", lambda *_: None)


def calls_the_core(function, *args) -> bool:
    return "tensorkey_look_up" in jax.jit(function).lower(*args).as_text()


def batch(seed: int, rows: int = ROWS, width: int = 8) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 1 << 30, (rows, width)).astype(np.int32)


def rounded(x):
    """A layer whose bits do not depend on slots."""
    return {"sum": (x * 3 - 1).sum(1), "row": jnp.maximum(x, 7).astype(jnp.float32) / 2}


def assert_same(one, other) -> None:
    one, other = jax.tree.leaves(one), jax.tree.leaves(other)
    assert len(one) == len(other)
    for a, b in zip(one, other, strict=True):
        assert a.dtype == b.dtype
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


@pytest.mark.parametrize("way", WAYS)
def test_rows_are_run_once(monkeypatch, way):
    choose(monkeypatch, way)
    cached = tkj.cached(rounded)
    program, bare = jax.jit(lambda x: cached(x)), jax.jit(rounded)
    x = batch(0)
    assert calls_the_core(cached, x) == (way == "core")
    x[5] = x[2]
    for part in (x, x[::-1], np.concatenate([x[:35], batch(1, 35)])):
        assert_same(program(part), bare(part))
    stats = cached.stats
    assert (stats.misses, stats.hits) == (69 + 35, 3 * ROWS - 69 - 35)
    assert stats.errors == stats.bypasses == {}
    assert stats.seconds_spent > 0


def test_what_one_way_stores_the_other_finds(monkeypatch):
    """Under the same keys, the digest of weights that are passed included."""
    cache, x, scale = tk.ActivationCache("8 MiB"), batch(0), 2

    def layer(params, x):
        return {"b": x * params["a"] * scale, "a": x[:, 0] - params["b"][1]}

    params = {"b": jnp.arange(3), "a": jnp.int32(7)}
    for i, way in enumerate(WAYS):
        with monkeypatch.context() as patch:
            choose(patch, way)
            cached = tkj.cached(layer, params_argnums=0, cache=cache)
            program = jax.jit(lambda p, x, cached=cached: cached(p, x))
            assert_same(program(params, x), jax.jit(layer)(params, x))
            assert cached.stats.misses == (0 if i else ROWS)


@pytest.fixture
def x64():
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", False)


def check_dtypes(dtypes: list[str]) -> None:
    """What the core reads of arrays that XLA hands over is what they are."""
    bits = np.random.default_rng(0).integers(0, 256, (7, 48)).astype(np.uint8)
    with np.errstate(all="ignore"):
        arrays = [bits.astype(jnp.dtype(dtype)) for dtype in dtypes]
    arrays += [array[0, :1].reshape(()) for array in arrays] + [array[:0] for array in arrays]
    names = [f"{i}" for i in range(len(arrays))]
    engine = _core.LayerEngine(tk.ActivationCache("1 MiB"))
    held = _core.XlaCall(
        engine,
        paths=["x"],
        about=bytes(32),
        secret=None,
        chunk=32,
        leaves=[("float32", ())],
        weights=[(None, [name.encode() for name in names], [*range(len(names))], [])],
        passed=True,
        looked_up=print,
        deviated=print,
    )
    digest = jax.ShapeDtypeStruct((32,), jnp.uint8)
    program = jax.ffi.ffi_call("tensorkey_weights", digest)
    found = np.asarray(program(*arrays, handle=np.int64(held.handle))).tobytes()
    expected = TracedWeights(names).digest(arrays)
    assert found == expected
    assert engine.stats()["errors"] == {}


def test_bits_of_all_dtypes():
    assert {*DTYPES, *WIDE} == _jax_ffi._WHOLE_BYTES
    check_dtypes(DTYPES)


@pytest.mark.usefixtures("x64")
def test_bits_of_wide_dtypes():
    check_dtypes(WIDE)


@pytest.mark.parametrize("dtype", ["bool", "bfloat16", "complex64"])
def test_rows_of_any_dtype(dtype):
    bits = np.random.default_rng(0).integers(0, 256, (ROWS, 3)).astype(np.uint8)
    x = jnp.asarray(bits).astype(dtype)
    cached = tkj.cached(lambda x: (x, x[:, 0]), bypass="never")
    program = jax.jit(lambda x: cached(x))
    for _ in range(2):
        assert_same(program(x), (x, x[:, 0]))
    assert cached.stats.hits >= ROWS
    assert cached.stats.errors == cached.stats.bypasses == {}


@pytest.mark.parametrize("role", ["rows", "weight", "output"])
def test_packed_dtypes_are_bypassed(role):
    """XLA packs two elements of four bits in a byte: whoever reads them so has no answer."""
    x = jnp.asarray(np.arange(ROWS * 4).reshape(ROWS, 4) % 7)
    layer, args = {
        "rows": (lambda x: x.astype("int32") * 2, [x.astype("int4")]),
        "weight": (lambda w, x: x * w.astype("int32"), [x[1].astype("int4"), x]),
        "output": (lambda x: x.astype("int4"), [x]),
    }[role]
    cached = tkj.cached(layer, params_argnums=() if len(args) == 1 else 0)
    program = jax.jit(lambda *given: cached(*given))
    assert "tensorkey" not in program.lower(*args).as_text()
    for _ in range(2):
        assert_same(program(*args), layer(*args))
    assert cached.stats.misses == 0
    assert any("int4" in reason for reason in cached.stats.bypasses)


@pytest.mark.parametrize("way", WAYS)
def test_weights_that_are_passed(monkeypatch, way):
    choose(monkeypatch, way)

    def layer(params, x):
        return jnp.where(x > 0, x * params["a"][0], 0) + params["b"] - params["empty"].sum()

    def params(first: float):
        return {
            "b": jnp.float32(1),
            "a": jnp.asarray([first, 2.0]),
            "empty": jnp.zeros((0, 3)),
        }

    cached = tkj.cached(layer, params_argnums=0)
    program = jax.jit(lambda p, x: cached(p, x))
    x = batch(0).astype(np.float32)
    for first, misses in ((4.0, 1), (8.0, 2), (4.0, 2), (8.0, 2)):
        assert_same(program(params(first), x), jax.jit(layer)(params(first), x))
        assert cached.stats.misses == misses * ROWS
    assert cached.stats.errors == cached.stats.bypasses == {}


@pytest.mark.parametrize("way", WAYS)
def test_a_layer_whose_rows_depend_on_each_other(monkeypatch, way):
    choose(monkeypatch, way)
    cached = tkj.cached(lambda x: x.astype(jnp.float32) - x.mean())
    program, x = jax.jit(lambda x: cached(x)), batch(0)
    with pytest.raises(
        (jax.errors.JaxRuntimeError, ValueError), match="changes with the rows beside it"
    ):
        jax.block_until_ready(program(x))
    assert_same(program(x), jax.jit(lambda x: x.astype(jnp.float32) - x.mean())(x))
    assert len(cached.stats.bypasses) == 1


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("rows", [1, 33])
def test_batches_of_any_size(monkeypatch, way, rows):
    choose(monkeypatch, way)
    cached = tkj.cached(rounded)
    program, bare = jax.jit(lambda x: cached(x)), jax.jit(rounded)
    for seed in (0, 0, 1):
        assert_same(program(batch(seed, rows)), bare(batch(seed, rows)))
    assert cached.stats.misses == 2 * rows
    assert cached.stats.errors == {}


@pytest.mark.parametrize("way", WAYS)
def test_rows_one_by_one(monkeypatch, way):
    """The whole batch is delivered first, then rows in order."""
    choose(monkeypatch, way)
    cached = tkj.cached(rounded, chunk=1, bypass="never")
    program, bare = jax.jit(lambda x: cached(x)), jax.jit(rounded)
    for seed in (0, 0, 1):
        assert_same(program(batch(seed)), bare(batch(seed)))
    assert cached.stats.misses == 2 * ROWS
    assert cached.stats.errors == cached.stats.bypasses == {}


def test_a_loop_over_batches():
    """Weights do not change in a loop, and need not be read in it more than once."""

    def layer(w, x):
        return jnp.maximum(x, 0).astype(jnp.float32) * w

    cached = tkj.cached(layer, params_argnums=0)
    batches = np.stack([batch(i % 2, 32) for i in range(5)])

    def program(w, batches):
        return jax.lax.scan(lambda c, x: (c, cached(w, x)), 0, batches)[1]

    w = jnp.float32(2)
    assert_same(jax.jit(program)(w, batches), jax.jit(jax.vmap(layer, (None, 0)))(w, batches))
    assert cached.stats.misses == 64
    assert cached.stats.errors == {}


def test_programs_for_other_layers_are_not_mixed_up():
    """Two calls of one layer in a program, and one of another with the same shapes."""
    one, two = tkj.cached(lambda x: x * 2), tkj.cached(lambda x: x * 3)
    program = jax.jit(lambda x, y: (one(x), two(x), one(y)))
    x, y = batch(0), batch(1)
    for _ in range(2):
        assert_same(program(x, y), (x * 2, x * 3, y * 2))
    assert_same(program(y, x), (y * 2, y * 3, x * 2))
    assert (one.stats.misses, two.stats.misses) == (2 * ROWS, 2 * ROWS)
    assert one.stats.errors == two.stats.errors == {}


def test_a_compiled_program_keeps_its_call():
    x, cache = batch(0), tk.ActivationCache("8 MiB")
    program = jax.jit(tkj.cached(rounded, cache=cache)).lower(x).compile()
    jax.clear_caches()
    gc.collect()
    for _ in range(2):
        assert_same(program(x), jax.jit(rounded)(x))
    assert cache.stats.hits >= ROWS


def test_programs_on_many_threads():
    cached = tkj.cached(rounded, bypass="never")
    program, bare = jax.jit(lambda x: cached(x)), jax.jit(rounded)
    program(batch(0))
    failures: list[BaseException] = []

    def work(seed: int) -> None:
        try:
            for i in range(20):
                x = np.concatenate([batch(i % 3, 35), batch(1000 * seed + i, 35)])
                assert_same(program(x), bare(x))
                assert cached.stats.lookups
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(1 + seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not failures, failures
    assert cached.stats.errors == {}
    assert cached.stats.lookups == ROWS * (1 + 8 * 20)


def test_a_jax_that_cannot_call_the_core_calls_python(monkeypatch):
    def refuse(*_: object, **__: object) -> None:
        raise ValueError("handler's API version (0.3) is incompatible with the framework's (0.9)")

    monkeypatch.setattr(jax.ffi, "register_ffi_target", refuse)
    _jax_ffi.refusal.cache_clear()
    try:
        assert "incompatible" in _jax_ffi.refusal()
        cached, x = tkj.cached(rounded), batch(0)
        assert not calls_the_core(cached, x)
        program = jax.jit(lambda x: cached(x))
        for _ in range(2):
            assert_same(program(x), jax.jit(rounded)(x))
        assert cached.stats.misses == ROWS
    finally:
        _jax_ffi.refusal.cache_clear()


@pytest.mark.parametrize("way", WAYS)
def test_hits_that_are_wrong_are_told(monkeypatch, way):
    """As a function with a state that no fingerprint sees."""
    choose(monkeypatch, way)
    state = {"added": 0.0}

    def layer(x):
        def read() -> np.ndarray:
            return np.float32(state["added"])

        return x.astype(jnp.float32) * 0 + jax.pure_callback(
            read, jax.ShapeDtypeStruct((), jnp.float32)
        )

    cached = tkj.cached(layer, verify=1.0, on_error="raise", ignore=("read",))
    program, x = jax.jit(lambda x: cached(x)), batch(0)
    jax.block_until_ready(program(x))
    state["added"] = 1.0
    with pytest.raises((jax.errors.JaxRuntimeError, ValueError), match="verify: .* differ"):
        jax.block_until_ready(program(x))
    assert cached.stats.deviating > 0


@pytest.fixture
def programs_on_disk(tmp_path):
    """JAX's own cache of compiled programs; yields the names of what happens to it."""
    options = {
        "jax_compilation_cache_dir": str(tmp_path / "programs"),
        "jax_persistent_cache_min_compile_time_secs": 0,
        "jax_persistent_cache_min_entry_size_bytes": 0,
    }
    before = {name: jax.config.values[name] for name in options}
    events: list[str] = []

    def listen(name: str, **_: object) -> None:
        events.append(name.rpartition("/")[2])

    compilation_cache.reset_cache()
    for name, value in options.items():
        jax.config.update(name, value)
    monitoring.register_event_listener(listen)
    yield events
    monitoring.unregister_event_listener(listen)
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()


def test_a_program_from_disk_finds_its_call(programs_on_disk):
    """The handle that was compiled into it is that of the same call, when it is made again."""
    x, cache = batch(0), tk.ActivationCache("8 MiB")

    def layer(x):  # no other test has calls that mean the same
        return x.sum(1) + 4711

    def run() -> tuple[int, dict[str, int]]:
        cached = tkj.cached(layer, cache=cache)
        assert_same(jax.jit(lambda x: cached(x))(x), bare(x))
        return cached.stats.misses, cached.stats.bypasses

    bare = jax.jit(layer)
    bare(x)
    for misses, event in ((ROWS, "cache_misses"), (0, "cache_hits")):
        del programs_on_disk[:]
        assert run() == (misses, {})
        assert event in programs_on_disk
        assert ("cache_misses" in programs_on_disk) == (misses > 0)
        jax.clear_caches()
        gc.collect()
        _jax_graph.let_go(patience=0)  # as if the process had ended
