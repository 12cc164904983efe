"""Programs made of a model hold the layer itself, never an answer of the cache."""

import importlib.util
import io

import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

from tensorkey.torch import CachedLayer  # noqa: E402

# PyTorch's own, on the way into these programs.
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def make(**options):
    layer = nn.Sequential(nn.Linear(16, 32), nn.Tanh()).eval().requires_grad_(False)
    return layer, CachedLayer(layer, **options), torch.randn(20, 16)


class Model(nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.layer = layer
        self.head = nn.Linear(32, 2)

    def forward(self, x):
        return self.head(self.layer(x))


@pytest.mark.parametrize("compile", ["island", "operator"])
@pytest.mark.parametrize("strict", [True, False])
def test_export(strict, compile):
    layer, cached, x = make(compile=compile)
    cached(x)
    model = Model(cached)
    batch = torch.export.Dim("batch", min=2, max=100)
    program = torch.export.export(model, (x,), dynamic_shapes={"x": {0: batch}}, strict=strict)
    other = torch.randn(9, 16)
    assert torch.allclose(program.module()(other), model.head(layer(other)), atol=1e-6)
    assert program.state_dict.keys() == model.state_dict().keys()
    assert not any("tensorkey" in str(node.target) for node in program.graph.nodes)
    assert cached.stats.bypasses["torch.export"] >= 1
    assert cached.stats.lookups == 20


def test_export_of_the_layer_alone():
    layer, cached, x = make()
    batch = torch.export.Dim("batch", min=2, max=100)
    shapes = {"inputs": ({0: batch},)}
    program = torch.export.export(cached, (x,), dynamic_shapes=shapes)
    other = torch.randn(9, 16)
    assert torch.allclose(program.module()(other), layer(other), atol=1e-6)


@pytest.mark.parametrize("shape", [(20, 16), (3, 16)])
def test_jit_trace(shape):
    layer, cached, x = make()
    model = Model(cached)
    model(x)
    traced = torch.jit.trace(model, (x,), check_trace=False)
    other = torch.randn(shape)
    assert torch.allclose(traced(other), model.head(layer(other)), atol=1e-6)
    assert list(cached.stats.bypasses) == ["torch.jit.trace"]


@pytest.mark.parametrize("dynamo", [True, False])
def test_onnx(dynamo):
    for package in ("onnx", *["onnxscript"] * dynamo):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"the package {package} is not installed")
    import onnx

    layer, cached, x = make()
    cached(x)
    plain, wrapped = (_onnx(onnx, Model(part), x, dynamo) for part in (layer, cached))
    assert wrapped == plain
    assert cached.stats.lookups == 20
    assert cached.stats.bypasses


def _onnx(onnx, model, x, dynamo):
    """Return the operators, in order, and the shapes of the weights."""
    if dynamo:
        program = torch.onnx.export(model, (x,), dynamo=True, verbose=False)
        graph = program.model_proto.graph
    else:
        file = io.BytesIO()
        torch.onnx.export(model, (x,), file, dynamo=False)
        graph = onnx.load_from_string(file.getvalue()).graph
    weights = sorted(list(weight.dims) for weight in graph.initializer)
    return [node.op_type for node in graph.node], weights


def test_make_fx_and_symbolic_trace():
    layer, cached, x = make()
    model = Model(cached)
    model(x)
    other = torch.randn(20, 16)
    graph = torch.fx.experimental.proxy_tensor.make_fx(model)(x)
    assert torch.allclose(graph(other), model.head(layer(other)), atol=1e-6)
    traced = torch.fx.symbolic_trace(model)
    assert torch.allclose(traced(other[:3]), model.head(layer(other[:3])), atol=1e-6)
    assert cached.stats.lookups == 20
    assert sum(cached.stats.bypasses.values()) == 2


class Table(nn.Module):
    """Calls its layer on a tensor of its own, also while it is traced symbolically."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer
        self.register_buffer("table", torch.randn(20, 16))

    def forward(self, x):
        return x + self.layer(self.table)


def test_a_value_that_a_symbolic_trace_computes_is_no_hit():
    layer, cached, x = make()
    model = Table(cached)
    cached(model.table)
    traced = torch.fx.symbolic_trace(model)
    x = torch.randn(20, 32)
    assert torch.allclose(traced(x), x + layer(model.table), atol=1e-6)
    assert cached.stats.lookups == 20
