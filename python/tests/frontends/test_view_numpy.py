"""NumPy arrays as keys."""

import pytest

import tensorkey as tk
from tensorkey.errors import Unsupported

np = pytest.importorskip("numpy")


def test_views_equal_their_copies() -> None:
    x = np.arange(24, dtype="float32").reshape(2, 3, 4)
    views = [
        x.T,
        x[:, ::-1],
        x[..., ::2],
        x[::-1, 1:, ::-3],
        x[1:1],
        np.broadcast_to(x, (5, *x.shape)),
    ]
    for view in views:
        assert tk.key(view) == tk.key(view.copy())
        assert tk.key(view) == tk.key(np.asfortranarray(view))


def test_fields_with_odd_strides() -> None:
    records = np.zeros(5, dtype=[("a", "i1"), ("b", "<f4"), ("c", ">u2")])
    records["b"] = range(5)
    records["c"] = range(5)
    assert tk.key(records["b"]) == tk.key(np.arange(5, dtype="float32"))
    assert tk.key(records["c"]) == tk.key(np.arange(5, dtype="uint16"))
    with pytest.raises(Unsupported, match="structured"):
        tk.key(records)


@pytest.mark.parametrize("dtype", ["i2", "u4", "i8", "f2", "f4", "f8", "c8", "c16", "M8[ms]"])
def test_byte_order_is_not_content(dtype: str) -> None:
    x = np.arange(6).astype("i8").astype(dtype)
    swapped = x.astype(x.dtype.newbyteorder(">"))
    assert tk.key(swapped) == tk.key(x)
    assert tk.key(swapped[::2]) == tk.key(x[::2])


def test_byte_order_of_ml_dtypes() -> None:
    ml_dtypes = pytest.importorskip("ml_dtypes")
    x = np.array([1.5, -2], dtype=ml_dtypes.bfloat16)
    swapped = x.view("u2").astype(">u2").view(x.dtype.newbyteorder(">"))
    assert tk.key(swapped) == tk.key(x)


def test_bools_are_normalised() -> None:
    odd = np.array([0, 1, 2, 255], dtype="u1").view("?")
    assert tk.key(odd) == tk.key(np.array([False, True, True, True]))
    assert tk.row_keys(odd)[2] == tk.key(np.bool_(True))


def test_scalars_are_arrays_of_rank_0() -> None:
    for scalar in (np.float32(1.5), np.int8(-1), np.bool_(True), np.complex64(1j)):
        assert tk.key(scalar) == tk.key(np.asarray(scalar))
    assert tk.key(np.datetime64("2020-01-01", "ns")) == tk.key(np.array("2020-01-01", "M8[ns]"))
    assert tk.key(np.float64(1)) != tk.key(np.ones(1))


def test_units_are_content() -> None:
    zeros = [np.zeros(2, f"M8{unit}") for unit in ("", "[s]", "[25s]", "[ms]")]
    zeros += [np.zeros(2, "m8[s]"), np.zeros(2, "i8")]
    assert len({tk.key(x) for x in zeros}) == len(zeros)


def test_not_a_time_is_a_value() -> None:
    x = np.array(["NaT", "2020"], dtype="M8[s]")
    assert tk.key(x) == tk.key(x.copy())
    assert tk.key(x[:1], canonical=True) != tk.key(x[1:], canonical=True)


def test_read_only_arrays_and_memmaps(tmp_path: object) -> None:
    x = np.arange(6, dtype="float32")
    frozen = x.copy()
    frozen.flags.writeable = False
    assert tk.key(frozen) == tk.key(x)
    mapped = np.memmap(f"{tmp_path}/x", dtype="float32", mode="w+", shape=(6,))
    mapped[:] = x
    assert tk.key(mapped) == tk.key(x)
    assert tk.describe(mapped).framework == "numpy"


def test_subclasses_are_refused() -> None:
    class Mine(np.ndarray):  # type: ignore[misc,name-defined]
        pass

    with pytest.raises(Unsupported, match=r"unknown subclass.*numpy\.asarray"):
        tk.key(np.zeros(2).view(Mine))
    with pytest.raises(Unsupported, match=r"unknown subclass.*numpy\.asarray"):
        tk.key(np.zeros(2, dtype=[("a", "i4")]).view(np.recarray))
    with pytest.raises(Unsupported, match="filled"):
        tk.key(np.ma.masked_array([1, 2], mask=[True, False]))


def test_canonical() -> None:
    x = np.array([0.0, -0.0, np.nan, -np.nan], dtype="float32")
    assert tk.key(x[:1]) != tk.key(x[1:2])
    assert tk.key(x[:1], canonical=True) == tk.key(x[1:2], canonical=True)
    assert tk.key(x[2:3], canonical=True) == tk.key(x[3:], canonical=True)
    big = x.astype(">f4")
    assert tk.key(big, canonical=True) == tk.key(x, canonical=True)


def test_a_large_broadcast_takes_no_memory() -> None:
    import resource

    x = np.broadcast_to(np.float32(1.5), (1 << 14, 1 << 14))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    key = tk.key(x)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before <= 1024
    assert key == tk.key(np.broadcast_to(np.full((1, 1), 1.5, "float32"), x.shape))
