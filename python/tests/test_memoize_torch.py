"""``memoize`` on functions of PyTorch's tensors: gradients, transformations, modules, formats."""

from __future__ import annotations

import pytest

import tensorkey as tk

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

model = nn.Linear(3, 2)


def again(value):
    """Return what a hit gives for a function that returned `value`."""
    f = tk.memoize(lambda number: holder[number])
    holder = [value]
    f(0)
    result = f(0)
    assert (f.stats.hits, f.stats.misses) == (1, 1), f.stats
    return result


@pytest.mark.parametrize(
    "value",
    [
        *(torch.randn(2, 3), torch.randn(2, 3).t(), torch.tensor(3), torch.empty(0, 2)),
        *(torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last), torch.ones(2, 1, 3)),
        *(
            torch.tensor([1.5], dtype=torch.bfloat16),
            torch.tensor([True]),
            torch.ones(3).expand(2, 3),
        ),
        *(
            torch.tensor([1 + 2j]).conj(),
            torch.randn(4)[::2],
            torch.tensor([1.0]).to(torch.float8_e5m2),
        ),
    ],
    ids=lambda value: f"{value.dtype}-{tuple(value.shape)}-{value.stride()}",
)
def test_tensors_come_back_as_they_were(value):
    result = again([value])[0]
    assert type(result) is torch.Tensor
    assert (result.dtype, result.device, result.shape) == (value.dtype, value.device, value.shape)
    assert result.stride() == torch.empty_like(value).stride()
    bits = [t.resolve_conj().reshape(-1).contiguous().view(torch.uint8) for t in (result, value)]
    assert torch.equal(*bits)
    assert result.data_ptr() % 16 == 0


def test_other_objects_of_torch_come_back():
    value = (torch.max(torch.eye(2), 0), torch.Size([1, 2]))
    result = again(value)
    assert type(result[0]) is torch.return_types.max
    assert torch.equal(result[0].indices, value[0].indices)
    assert type(result[1]) is torch.Size
    assert result[1] == (1, 2)


def test_dtypes_devices_and_formats_are_arguments():
    f = tk.memoize(lambda value: 0)
    values = [torch.float32, torch.float64, torch.device("cpu"), torch.strided, "cpu"]
    values += [torch.channels_last, torch.Size([1]), (1,), torch.relu, torch.sigmoid]
    keys = [f.key(value) for value in values]
    assert len(set(keys)) == len(keys)


def test_gradients_are_never_lost():
    f = tk.memoize(lambda x: x * 2)
    x = torch.ones(3)
    with torch.no_grad():
        f(x)
    y = torch.ones(3, requires_grad=True)
    f(y).sum().backward()
    assert y.grad.tolist() == [2, 2, 2]
    with torch.no_grad():
        f(x), f(y.detach())
    assert f.stats.hits == 2
    [reason] = f.stats.bypasses
    assert reason.startswith("gradients of an argument are recorded")
    f(torch.ones(3))
    assert f.stats.misses == 2  # a result without gradients does not answer with them


def test_a_result_that_is_part_of_a_graph_is_not_kept():
    @tk.memoize
    def f(x):
        return model(x)

    x = torch.ones(1, 3)
    with torch.no_grad():
        f(x)
    for _ in range(2):
        assert f(x).requires_grad
    assert list(f.stats.bypasses.values()) == [2]
    assert "global model: torch.nn.modules.linear.Linear" in f.stats.assumptions


def test_hits_outside_inference_mode_feed_autograd():
    f = tk.memoize(lambda x: x * 2)
    with torch.inference_mode():
        f(torch.ones(3))
        f(torch.ones(3))
    with torch.no_grad():
        result = f(torch.ones(3))
    assert f.stats.hits == 2
    (result * nn.Parameter(torch.ones(3))).sum().backward()


@pytest.mark.filterwarnings("ignore:.*torch.jit.trace. is deprecated")
def test_transformations_run_the_function():
    f = tk.memoize(lambda x: x * 2)
    x = torch.ones(2, 3)
    for _ in range(2):
        assert torch.equal(torch.func.vmap(f)(x), x * 2)
        assert torch.func.grad(lambda x: f(x).sum())(x).tolist() == [[2] * 3] * 2
    f(x)
    traced = torch.jit.trace(lambda x: f(x), (x,))
    assert torch.equal(traced(x + 1), (x + 1) * 2)  # no constant was baked in
    assert f.stats.hits == 0
    assert f.stats.bypasses == {"a torch.func transform": 4, "torch.jit.trace": 2}


def test_compiled_code_runs_the_function():
    f = tk.memoize(lambda x: x * 2)

    @torch.compile(backend="eager", fullgraph=True)
    def step(x):
        return f(x) + 1

    x = torch.ones(3)
    f(x)
    for value in (x, x + 1):
        assert torch.equal(step(value), value * 2 + 1)
    assert (f.stats.hits, f.stats.misses) == (0, 1)


def test_the_environment_counts():
    f = tk.memoize(lambda x: x @ x)
    made = tk.memoize(lambda n: torch.ones(n))
    x = torch.ones(2, 2)
    keys = [f.key(x), made.key(3)]
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        assert made(3).dtype is torch.float64
        assert made.key(3) not in keys
    finally:
        torch.set_default_dtype(default)
    with torch.autocast("cpu", torch.bfloat16):
        assert f.key(x) not in keys
    assert [f.key(x), made.key(3)] == keys
    assert made(3).dtype is torch.float32


class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 2).requires_grad_(False)
        self.register_buffer("shift", torch.zeros(2))
        self.runs = 0

    @tk.memoize
    def encode(self, x):
        self.runs += 1
        return self.linear(x) + self.shift


def test_a_module_counts_by_its_weights_and_buffers():
    layer = Encoder()
    x = torch.ones(1, 3)
    first = layer.encode(x)
    assert torch.equal(layer.encode(x), first)
    layer.linear.weight.data.mul_(2)
    assert not torch.equal(layer.encode(x), first)
    layer.linear.weight.data.mul_(0.5)
    assert torch.equal(layer.encode(x), first)
    layer.shift += 1
    layer.encode(x)
    layer.eval()
    layer.encode(x)
    assert layer.runs == 4
    layer.linear.requires_grad_(True)
    assert layer.encode(x).requires_grad
    assert any("gradients of the instance" in reason for reason in Encoder.encode.stats.bypasses)
    assert Encoder.encode.stats.assumptions == ["self.runs: the method writes it"]


def test_a_module_may_be_an_argument():
    f = tk.memoize(lambda layer, x: layer(x))
    layer, x = nn.Linear(3, 2).requires_grad_(False), torch.ones(1, 3)
    assert torch.equal(f(layer, x), f(layer, x))
    assert f.stats.hits == 1
    layer.weight[0, 0] += 1
    assert torch.equal(f(layer, x), layer(x))
    layer.requires_grad_(True)
    assert f(layer, x).requires_grad


def test_subclasses_and_tensors_without_values_run_the_function():
    f = tk.memoize(lambda x: x * 1)
    f(torch.ones(2, device="meta"))
    f(torch.eye(2).to_sparse())
    assert f(nn.Parameter(torch.ones(2), requires_grad=False)).tolist() == [1, 1]
    assert (f.stats.hits, f.stats.misses) == (0, 1)
    given = nn.Parameter(torch.ones(2), requires_grad=False)
    same = tk.memoize(lambda x: x)
    assert same(given) is given
    assert same.stats.bypasses == {"a Parameter in the result: return a torch.Tensor": 1}


def test_on_a_gpu():
    if not torch.cuda.is_available():
        pytest.skip("no GPU")
    f = tk.memoize(lambda x: x * 2)
    x = torch.ones(3, device="cuda")
    f(x.cpu())
    for _ in range(2):
        result = f(x)
        assert result.device == x.device
        assert result.tolist() == [2, 2, 2]
    assert (f.stats.hits, f.stats.misses) == (1, 2)
