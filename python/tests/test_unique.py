"""tk.unique: exact de-duplication of rows, in the framework that was put in."""

import array

import pytest

import tensorkey as tk

np = pytest.importorskip("numpy")


def reference(rows):
    seen, index, inverse, counts = {}, [], [], []
    for i, row in enumerate(rows):
        group = seen.setdefault(np.ascontiguousarray(row).tobytes(), len(seen))
        if group == len(index):
            index.append(i)
            counts.append(0)
        inverse.append(group)
        counts[group] += 1
    return index, inverse, counts


@pytest.mark.parametrize("shape", [(200,), (200, 1), (200, 3), (100, 2, 2), (7, 0), (0, 3), (0,)])
@pytest.mark.parametrize("order", ["C", "F"])
def test_agrees_with_a_dict_of_bytes(shape, order):
    rows = np.random.default_rng(5).integers(0, 3, shape).astype(np.float32)
    rows = np.array(rows, order=order)
    index, inverse, counts = reference(rows)
    values, *numbers = tk.unique(rows, return_index=True, return_inverse=True, return_counts=True)
    assert [n.tolist() for n in numbers] == [index, inverse, counts]
    assert all(n.dtype == np.int64 for n in numbers)
    assert np.array_equal(values, rows[index])
    assert np.array_equal(values[numbers[1]], rows)
    if rows.size:
        assert len(values) == len(np.unique(rows, axis=0))


def test_rows_are_compared_bit_by_bit():
    rows = np.array([[0.0], [-0.0], [np.nan], [np.nan], [0.0]])
    assert len(tk.unique(rows)) == 3


def test_what_is_asked_for_comes_back():
    rows = np.array([1, 2, 1])
    assert tk.unique(rows).tolist() == [1, 2]
    values, counts = tk.unique(rows, return_counts=True)
    assert (values.tolist(), counts.tolist()) == ([1, 2], [2, 1])
    values, index, inverse = tk.unique(rows, return_index=True, return_inverse=True)
    assert (index.tolist(), inverse.tolist()) == ([0, 1], [0, 1, 0])


def test_torch():
    torch = pytest.importorskip("torch")
    rows = torch.tensor([[3.0, 4.0], [1.0, 2.0], [3.0, 4.0]], requires_grad=True)
    values, index, inverse, counts = tk.unique(
        rows, return_index=True, return_inverse=True, return_counts=True
    )
    assert values.tolist() == [[3, 4], [1, 2]]
    assert all(t.dtype == torch.int64 for t in (index, inverse, counts))
    assert torch.equal(values[inverse], rows)
    values.sum().backward()
    assert rows.grad.tolist() == [[1, 1], [1, 1], [0, 0]]
    expected, expected_inverse = torch.unique(rows, dim=0, return_inverse=True)
    assert {tuple(v) for v in values.tolist()} == {tuple(v) for v in expected.tolist()}
    assert torch.equal(expected[expected_inverse], values[inverse])
    assert tk.unique(torch.zeros(0, 3)).shape == (0, 3)
    half = torch.tensor([1, 2, 1]).to(torch.bfloat16)
    assert tk.unique(half).dtype == torch.bfloat16


def test_jax():
    jax = pytest.importorskip("jax")
    rows = jax.numpy.asarray([[3, 4], [1, 2], [3, 4]])
    values, inverse = tk.unique(rows, return_inverse=True)
    assert isinstance(values, jax.Array)
    assert isinstance(inverse, jax.Array)
    assert values.tolist() == [[3, 4], [1, 2]]
    assert inverse.tolist() == [0, 1, 0]


def test_tensorflow():
    tf = pytest.importorskip("tensorflow")
    rows = tf.constant([[3, 4], [1, 2], [3, 4]])
    for given in (rows, tf.Variable(rows)):
        values, counts = tk.unique(given, return_counts=True)
        assert values.numpy().tolist() == [[3, 4], [1, 2]]
        assert counts.dtype == tf.int64
        assert counts.numpy().tolist() == [2, 1]


def test_buffers_give_numpy_arrays():
    values = tk.unique(array.array("i", [5, 5, 6]))
    assert isinstance(values, np.ndarray)
    assert values.tolist() == [5, 6]


def test_errors():
    with pytest.raises(ValueError, match="rank 0"):
        tk.unique(np.float32(1))
    with pytest.raises(TypeError):
        tk.unique([1, 2, 1])
    with pytest.raises(TypeError):
        tk.unique(np.zeros(3), True)
