"""What is taken for which tensor: every row of docs/frontends/dtypes.md, and what is refused."""

import array
import ctypes
import importlib
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

import tensorkey as tk
from tensorkey.errors import Unsupported

ROOT = Path(__file__).parents[2]
SHAPE = (2, 3)

Row = tuple[str, str, str]


def read_table() -> list[Row]:
    text = (ROOT / "docs" / "frontends" / "dtypes.md").read_text()
    found = re.findall(r"^\| (\w+) \| `([^`]+)` \| (\w+) \|", text, re.MULTILINE)
    assert len(found) > 150
    return found


ROWS = read_table()


def need(name: str) -> ModuleType:
    """Import a framework, or skip the row."""
    try:
        return importlib.import_module(name)
    except ImportError:
        pytest.skip(f"{name} is not installed")


# Each maker gives a tensor of ones, of SHAPE where the class has shapes.


def make_numpy(dtype: str) -> object:
    np = need("numpy")
    if dtype == "T":
        if not hasattr(np.dtypes, "StringDType"):
            pytest.skip("NumPy 1 has no StringDType")
        return np.full(SHAPE, "1", dtype=np.dtypes.StringDType())
    if np.dtype(dtype).kind in "Mm":
        return np.ones(SHAPE, dtype="int64").astype(dtype)
    return np.ones(SHAPE, dtype=dtype)


def make_ml_dtypes(dtype: str) -> object:
    np = need("numpy")
    ml_dtypes = need("ml_dtypes")
    if not hasattr(ml_dtypes, dtype):
        pytest.skip(f"this ml_dtypes has no {dtype}")
    return np.ones(SHAPE, dtype=getattr(ml_dtypes, dtype))


def make_torch(dtype: str) -> object:
    torch = need("torch")
    if not hasattr(torch, dtype):
        pytest.skip(f"this PyTorch has no {dtype}")
    wanted = getattr(torch, dtype)
    if dtype in ("qint8", "quint8", "qint32"):
        return torch.quantize_per_tensor(torch.ones(SHAPE), 0.1, 0, wanted)
    if dtype == "bits16":
        return torch.ones(SHAPE, dtype=torch.int16).view(wanted)
    if wanted.is_floating_point and "float4" not in dtype or wanted.is_complex:
        return torch.ones(SHAPE).to(wanted)
    if re.fullmatch("bool|u?int(8|16|32|64)", dtype):
        return torch.ones(SHAPE, dtype=wanted)
    return torch.ones(SHAPE, dtype=torch.uint8).view(wanted)


def make_jax(dtype: str) -> object:
    jax = need("jax")
    if dtype.startswith("key"):
        return jax.random.key(0)
    if dtype == "float0":
        return need("numpy").zeros(SHAPE, jax.dtypes.float0)
    with jax.enable_x64(True):
        return jax.numpy.ones(SHAPE, dtype=dtype)


def make_tensorflow(dtype: str) -> object:
    tf = need("tensorflow")
    if dtype == "string":
        return tf.constant(["1"])
    if dtype == "resource":
        return tf.Variable(1.0).handle
    if dtype == "variant":
        return tf.raw_ops.EmptyTensorList(
            element_shape=[1], max_num_elements=1, element_dtype=tf.float32
        )
    wanted = tf.dtypes.as_dtype(dtype)
    if dtype.startswith("q"):
        return tf.cast(tf.ones(SHAPE, tf.int32), wanted)
    return tf.constant(need("numpy").ones(SHAPE, dtype=wanted.as_numpy_dtype))


def make_keras(dtype: str) -> object:
    np = need("numpy")
    return need("keras").Variable(np.ones(SHAPE, dtype="float32"), dtype=dtype, trainable=False)


def make_array(dtype: str) -> object:
    if dtype == "u":
        return array.array("w" if sys.version_info >= (3, 13) else "u", "1")
    return array.array(dtype, [1] * 6)


def make_ctypes(dtype: str) -> object:
    return (getattr(ctypes, dtype) * 3 * 2)(*([(1, 1, 1)] * 2 if is_number(dtype) else []))


def is_number(dtype: str) -> bool:
    return dtype not in ("c_char", "c_wchar", "c_void_p")


def make_builtins(dtype: str) -> object:
    made: dict[str, object] = {
        "bytes": b"\x01" * 6,
        "bytearray": bytearray(b"\x01" * 6),
        "memoryview": memoryview(b"\x01" * 6).cast("B", SHAPE),
        "str": "1",
        "list": [1.0],
        "tuple": (1.0,),
        "bool": True,
        "int": 1,
        "float": 1.0,
        "complex": 1j,
        "NoneType": None,
        "dict": {"a": b"1"},
        "set": {1},
    }
    return made[dtype]


MAKERS = {
    "numpy": make_numpy,
    "ml_dtypes": make_ml_dtypes,
    "torch": make_torch,
    "jax": make_jax,
    "tensorflow": make_tensorflow,
    "keras": make_keras,
    "array": make_array,
    "ctypes": make_ctypes,
    "builtins": make_builtins,
}

LABELS = {"ml_dtypes": "numpy", "array": "buffer", "ctypes": "buffer", "builtins": "buffer"}


def twin(dtype: str, shape: tuple[int, ...]) -> object | None:
    """Make the NumPy array of ones that must have the same key, if NumPy has the dtype."""
    np = pytest.importorskip("numpy")
    if hasattr(np, dtype) and dtype not in ("datetime64", "timedelta64"):
        return np.ones(shape, dtype=dtype)
    try:
        ml_dtypes = importlib.import_module("ml_dtypes")
    except ImportError:
        return None
    return np.ones(shape, dtype=getattr(ml_dtypes, dtype)) if hasattr(ml_dtypes, dtype) else None


@pytest.mark.filterwarnings("ignore")  # frameworks deprecate quantised dtypes
@pytest.mark.parametrize(("framework", "dtype", "expected"), ROWS, ids=lambda part: str(part))
def test_row(framework: str, dtype: str, expected: str) -> None:
    try:
        x = MAKERS[framework](dtype)
    except (NotImplementedError, RuntimeError, TypeError, ValueError) as error:
        if expected != "refused":
            raise
        pytest.skip(f"cannot be made here: {error}")
    if expected == "refused":
        for function in (tk.describe, tk.key, tk.structure_key):
            with pytest.raises(Unsupported, match=r"\[tensorkey\] ") as raised:
                function(x)
            assert isinstance(raised.value, TypeError)
        return
    description = tk.describe(x)
    assert description.dtype == expected
    assert description.shape == SHAPE or framework in ("array", "builtins")
    assert not description.host_copy
    if framework != "keras":
        assert description.framework == LABELS.get(framework, framework)
    same = twin(expected, description.shape)
    if same is not None:
        assert tk.key(x) == tk.key(same)
        if ">" not in dtype:
            assert tk.structure_key(x) == tk.structure_key(same)


def test_table_has_every_dtype_of_torch() -> None:
    torch = pytest.importorskip("torch")
    listed = {getattr(torch, d) for f, d, _ in ROWS if f == "torch" and hasattr(torch, d)}
    present = {v for v in vars(torch).values() if isinstance(v, torch.dtype)}
    assert present - listed == set()


def test_table_has_every_dtype_of_ml_dtypes() -> None:
    ml_dtypes = pytest.importorskip("ml_dtypes")
    listed = {d for f, d, _ in ROWS if f == "ml_dtypes"}
    present = {n for n, v in vars(ml_dtypes).items() if isinstance(v, type)}
    assert present - listed - {"finfo", "iinfo"} == set()


@pytest.mark.filterwarnings("ignore")
def test_table_has_every_dtype_of_tensorflow() -> None:
    tf = pytest.importorskip("tensorflow")
    listed = {d for f, d, _ in ROWS if f == "tensorflow"}
    spaces = (tf.dtypes, tf.dtypes.experimental)
    present = {v.name for s in spaces for v in vars(s).values() if isinstance(v, tf.DType)}
    assert present - listed == set()


def test_table_has_every_scalar_of_numpy() -> None:
    np = pytest.importorskip("numpy")
    listed = {np.dtype(d) for f, d, _ in ROWS if f == "numpy" and d != "T"}
    for code in np.typecodes["All"].replace("S", "").replace("U", "").replace("V", ""):
        dtype = np.dtype(code)
        same = [d for d in listed if d.kind == dtype.kind and d.itemsize == dtype.itemsize]
        assert same or code == "c", code


class Opaque:
    """Answers to every name, as proxies do."""

    def __getattr__(self, name: str) -> object:
        return lambda *args, **kwargs: None


@pytest.mark.parametrize("x", [object(), Opaque(), type, len, Ellipsis, iter([])])
def test_what_is_no_tensor_is_told_what_to_pass(x: object) -> None:
    with pytest.raises(Unsupported, match="exporter of a buffer or of __dlpack__"):
        tk.key(x)


@pytest.mark.parametrize(
    ("x", "cure"),
    [
        ("text", r"x\.encode\(\)"),
        ([1.0], r"numpy\.asarray"),
        (1.5, r"numpy\.float32"),
        (True, "not bool"),
        (None, "not NoneType"),
        ({"a": b"1"}, "tuple_key"),
    ],
)
def test_refused_by_name_with_a_cure(x: object, cure: str) -> None:
    with pytest.raises(Unsupported, match=cure):
        tk.key(x)


def test_a_subclass_of_a_refused_class_is_refused() -> None:
    class Text(str):
        __slots__ = ()

    class Numbers(list):  # type: ignore[type-arg]
        pass

    for x in (Text("a"), Numbers()):
        with pytest.raises(Unsupported):
            tk.key(x)


def test_a_class_that_only_calls_itself_a_tensor_is_not_one() -> None:
    class Tensor:
        pass

    for module, name in (("numpy", "ndarray"), ("torch", "Tensor"), ("jaxlib._jax", "ArrayImpl")):
        fake = type(name, (), {"__module__": module})
        with pytest.raises(Unsupported):
            tk.key(fake())


def test_strided_buffers_equal_their_copies() -> None:
    whole = memoryview(bytes(range(60)))
    for part in (whole[::2], whole[::-3], whole[5:5], whole[50:3:-7]):
        assert tk.key(part) == tk.key(part.tobytes())


def test_a_buffer_is_released() -> None:
    data = bytearray(b"abc")
    tk.key(data)
    tk.structure_key(data)
    data.append(0)  # raises BufferError while a buffer is held
    words = array.array("u", "ab") if sys.version_info < (3, 13) else array.array("w", "ab")
    with pytest.raises(Unsupported):
        tk.key(words)
    words.append("c")


def test_scalars_and_empty_tensors_differ_by_shape() -> None:
    np = pytest.importorskip("numpy")
    shapes = [(), (1,), (1, 1), (0,), (0, 3), (3, 0)]
    assert len({tk.key(np.zeros(shape, "float32")) for shape in shapes}) == len(shapes)


def leaked(function: object, x: object) -> int:
    """Count the references to `x` that 1,000 calls leave behind."""
    assert callable(function)

    def call() -> None:
        try:
            function(x)
        except (Unsupported, RuntimeError):
            return

    call()
    before = sys.getrefcount(x), sys.getrefcount(type(x))
    for _ in range(1000):
        call()
    after = sys.getrefcount(x), sys.getrefcount(type(x))
    return abs(after[0] - before[0]) + abs(after[1] - before[1])


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("framework", "dtype"),
    [
        ("numpy", "float32"),
        ("numpy", "datetime64[ns]"),
        ("numpy", "longdouble"),
        ("numpy", "i4,f4"),
        ("ml_dtypes", "bfloat16"),
        ("ml_dtypes", "bcomplex32"),
        ("torch", "float32"),
        ("torch", "complex64"),
        ("torch", "int4"),
        ("torch", "qint8"),
        ("jax", "float32"),
        ("jax", "bfloat16"),
        ("jax", "key<fry>"),
        ("tensorflow", "float32"),
        ("tensorflow", "int4"),
        ("tensorflow", "qint8"),
        ("tensorflow", "string"),
        ("array", "d"),
        ("ctypes", "c_int"),
        ("ctypes", "c_wchar"),
        ("builtins", "str"),
        ("builtins", "list"),
    ],
)
def test_references_balance(framework: str, dtype: str) -> None:
    x = MAKERS[framework](dtype)
    for function in (tk.describe, tk.key, tk.structure_key):
        assert leaked(function, x) == 0, function


def test_describe_shows_what_it_found() -> None:
    assert repr(tk.describe(b"ab")) == (
        "Description(dtype='uint8', shape=(2,), framework='buffer', host_copy=False)"
    )
    np = pytest.importorskip("numpy")
    assert tk.describe(np.zeros(1, "M8[25s]")).unit == "25s"
    assert tk.describe(np.zeros(1, "m8")).unit == "generic"
