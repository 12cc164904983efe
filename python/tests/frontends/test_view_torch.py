"""PyTorch tensors as keys: what the exchange API hides, what is refused, devices."""

import sys
from collections.abc import Callable

import pytest

import tensorkey as tk
from tensorkey.errors import Unsupported

torch = pytest.importorskip("torch")

# PyTorch warns of deprecations of its own inside transforms.
pytestmark = pytest.mark.filterwarnings("ignore")

Tensor = torch.Tensor
TRACED = "has no value while the model is being traced; wrap the layer in CachedLayer"


def test_views_equal_their_copies() -> None:
    x = torch.arange(2.0 * 3 * 4).reshape(2, 3, 4)
    for view in (
        x.permute(2, 1, 0),
        x[:, 1:],
        x[..., ::2],
        x.transpose(0, 2),
        x[1:1],
        x[:, :1].expand(2, 7, 4),
    ):
        assert tk.key(view) == tk.key(view.contiguous())
        assert tk.key(view) == tk.key(view.numpy().copy())


def test_gradients_and_classes_are_not_content() -> None:
    x = torch.ones(3)
    key = tk.key(x)
    assert tk.key(torch.nn.Parameter(x)) == key
    assert tk.key(torch.nn.Buffer(x)) == key
    assert tk.key(x.clone().requires_grad_() * 1) == key
    with torch.inference_mode():
        assert tk.key(torch.ones(3)) == key
    with torch.autograd.forward_ad.dual_level():
        assert tk.key(torch.autograd.forward_ad.make_dual(x, torch.zeros(3))) == key
    with torch.device("meta"):
        assert tk.key(x) == key


@pytest.mark.parametrize("dtype", [torch.complex32, torch.complex64, torch.complex128])
def test_conjugated_views(dtype: torch.dtype) -> None:
    x = torch.tensor([1 + 2j, 3 - 4j], dtype=torch.complex128).to(dtype)
    assert tk.key(x.conj()) == tk.key(x.conj().resolve_conj())
    assert tk.key(x.conj()) != tk.key(x)
    assert tk.key(x.conj().conj()) == tk.key(x)
    imag = x.conj().imag
    assert imag.is_neg()
    assert tk.key(imag) == tk.key(imag.resolve_neg().clone())
    assert tk.key(imag) != tk.key(x.imag)


def test_conjugated_views_that_need_a_gradient() -> None:
    x = torch.tensor([1 + 2j, 3 - 4j], requires_grad=True)
    imag = x.conj().imag
    assert tk.key(imag) == tk.key(torch.tensor([-2.0, 4.0]))
    assert x.grad is None


@pytest.mark.parametrize(
    "dtype", [torch.float16, torch.bfloat16, torch.int32, torch.uint8, torch.float8_e5m2]
)
def test_negated_views_of_any_dtype(dtype: torch.dtype) -> None:
    x = torch.tensor([1, 2]).to(dtype)
    try:
        expected = torch._neg_view(x).resolve_neg()
    except (NotImplementedError, RuntimeError):
        pytest.skip("PyTorch cannot negate it")
    assert tk.key(torch._neg_view(x)) == tk.key(expected)


def test_negated_and_conjugated_at_once() -> None:
    x = torch.tensor([1 + 2j])
    assert tk.key(torch._neg_view(x).conj()) == tk.key(torch.tensor([-1 + 2j]))


def test_sub_byte_integers_are_not_bytes() -> None:
    bytes_ = torch.tensor([1, 15], dtype=torch.uint8)
    keys = [tk.key(bytes_)]
    keys += [tk.key(bytes_.view(dtype)) for dtype in (torch.int4, torch.uint4, torch.int8)]
    assert len(set(keys)) == 4
    high = torch.tensor([0xF1, 0x2F], dtype=torch.uint8)
    assert tk.key(high.view(torch.uint4)) == tk.key(bytes_.view(torch.uint4))


def freed() -> Tensor:
    x = torch.ones(3)
    x.untyped_storage().resize_(0)
    return x


class Mine(Tensor):
    pass


REFUSED: list[tuple[str, Callable[[], object], str]] = [
    ("meta", lambda: torch.ones(3, device="meta"), TRACED),
    ("functional", lambda: torch._to_functional_tensor(torch.ones(3)), TRACED),
    ("zero", lambda: torch._efficientzerotensor((3,)), r"zero tensor.*x\.clone\(\)"),
    ("freed", freed, "elements and no memory"),
    ("sparse", lambda: torch.eye(3).to_sparse(), r"layout torch\.sparse_coo.*to_dense"),
    ("csr", lambda: torch.eye(3).to_sparse_csr(), r"layout torch\.sparse_csr"),
    ("mkldnn", lambda: torch.eye(3).to_mkldnn(), r"layout torch\._mkldnn"),
    (
        "nested",
        lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]),
        "nested tensor",
    ),
    (
        "jagged",
        lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)], layout=torch.jagged),
        "NestedTensor",
    ),
    (
        "quantised",
        lambda: torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8),
        r"quantised.*dequantize",
    ),
    ("subclass", lambda: torch.ones(2).as_subclass(Mine), "unknown subclass"),
    ("parameter", lambda: torch.nn.Parameter(torch.ones(2).as_subclass(Mine)), "unknown subclass"),
    ("lazy", torch.nn.UninitializedParameter, "lazy module"),
    ("bits", lambda: torch.ones(2, dtype=torch.uint8).view(torch.bits8), "cannot be read"),
]


@pytest.mark.parametrize(
    ("make", "text"), [case[1:] for case in REFUSED], ids=[case[0] for case in REFUSED]
)
def test_refused(make: Callable[[], object], text: str) -> None:
    x = make()
    before = sys.getrefcount(x)
    for function in (tk.key, tk.describe, tk.structure_key):
        with pytest.raises(Unsupported, match=text):
            function(x)
    del function
    assert sys.getrefcount(x) <= before + 1


def test_fake_tensors() -> None:
    from torch._subclasses import FakeTensorMode

    with pytest.raises(Unsupported, match=TRACED):
        tk.key(FakeTensorMode().from_tensor(torch.ones(3)))


def test_inside_transforms() -> None:
    def refused(x: Tensor) -> Tensor:
        with pytest.raises(Unsupported, match=TRACED):
            tk.key(x)
        return x.sum()

    torch.func.vmap(refused)(torch.ones(2, 3))
    torch.func.grad(refused)(torch.ones(3))
    torch.func.jvp(refused, (torch.ones(3),), (torch.ones(3),))


def test_fx_proxies() -> None:
    class Layer(torch.nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            with pytest.raises(Unsupported, match=TRACED):
                tk.key(x)
            return x

    torch.fx.symbolic_trace(Layer())


def test_masked_tensors() -> None:
    x = torch.masked.masked_tensor(torch.ones(2), torch.tensor([True, False]))
    with pytest.raises(Unsupported, match="get_mask"):
        tk.key(x)


def test_structure() -> None:
    x = torch.ones(4, 6)
    key = tk.structure_key(x)
    assert tk.structure_key(torch.rand(4, 6)) == key
    assert tk.structure_key(x.numpy()) == key
    assert tk.structure_key(x.T) == tk.structure_key(x.numpy().T)
    others = [x.T, x[:2], x.double(), x.clone().requires_grad_(), torch.ones(6, 4)]
    assert len({key, *(tk.structure_key(other) for other in others)}) == 6


def test_structure_of_lazy_views_is_their_own() -> None:
    x = torch.ones(3, dtype=torch.complex64)
    assert tk.structure_key(x.conj()) == tk.structure_key(x)


def test_a_storage_shrunk_behind_its_tensor_is_refused() -> None:
    x = torch.ones(100, 1000)[1:]
    x.untyped_storage().resize_(64)
    for function in (tk.key, tk.row_keys, tk.TensorKeyDict().get):
        with pytest.raises(Unsupported, match="its storage has 64 bytes, and it needs 400000"):
            function(x)
    assert tk.structure_key(x) == tk.structure_key(torch.ones(99, 1000)), "reads no element"


def test_resizing_after_a_key_is_safe() -> None:
    x = torch.ones(3)
    first = tk.key(x)
    x.resize_(5).fill_(1)
    assert tk.key(x) == tk.key(torch.ones(5)) != first


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda() -> None:
    x = torch.arange(12.0).reshape(3, 4)
    on_device = x.cuda()
    for view in (lambda t: t, lambda t: t.T, lambda t: t[:, ::2], lambda t: t[:0]):
        assert tk.key(view(on_device)) == tk.key(view(x))
    z = torch.tensor([1 + 2j, 3 - 4j])
    assert tk.key(z.cuda().conj()) == tk.key(z.conj())
    assert tk.key(z.cuda().conj().imag) == tk.key(z.conj().imag)
    nibbles = torch.tensor([1, 15], dtype=torch.uint8)
    assert tk.key(nibbles.cuda().view(torch.int4)) == tk.key(nibbles.view(torch.int4))
    assert tk.describe(on_device).host_copy
    assert not tk.describe(x.pin_memory()).host_copy
    assert tk.key(x.pin_memory()) == tk.key(x)
    structures = {tk.structure_key(t) for t in (x, on_device, x.pin_memory())}
    assert len(structures) == 3
