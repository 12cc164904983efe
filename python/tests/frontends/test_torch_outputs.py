"""Inputs and outputs of PyTorch layers: ModelOutput, BatchEncoding, distributions, memory order."""

import dataclasses
import importlib.util
import sys
import types
import warnings

import pytest

torch = pytest.importorskip("torch")

from tensorkey._backend import Bypass, Unsuited  # noqa: E402
from tensorkey._inputs import Signature  # noqa: E402
from tensorkey._outputs import output_form, pack  # noqa: E402


class Torch:
    """PyTorch as the framework of a layer."""

    @staticmethod
    def is_tensor(value):
        return isinstance(value, torch.Tensor)

    @staticmethod
    def rows(tensor):
        return tensor.size(0) if tensor.dim() else None


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def again(output, **options):
    parts = pack(output, Torch(), **options)
    copies = [leaf.clone(memory_format=torch.contiguous_format) for leaf in parts.leaves]
    return output_form(parts.form).unpack(copies)


def same(one, other):
    return one.dtype == other.dtype and torch.equal(one, other)


# --- transformers.


@pytest.fixture(scope="module")
def outputs():
    pytest.importorskip("transformers")
    from transformers import modeling_outputs

    return modeling_outputs


def test_model_outputs(outputs):
    hidden, pooled = torch.randn(2, 3, 4), torch.randn(2, 4)
    states = (torch.randn(2, 3, 4), hidden)
    for output in (
        outputs.BaseModelOutput(last_hidden_state=hidden),
        outputs.BaseModelOutputWithPooling(hidden, pooled, hidden_states=states),
        outputs.SequenceClassifierOutput(logits=pooled, loss=torch.tensor(0.5)),
        outputs.BaseModelOutput(last_hidden_state=hidden, attentions=(pooled, None)),
    ):
        result = again(output)
        assert type(result) is type(output)
        assert list(result.keys()) == list(output.keys())
        assert vars(result).keys() == vars(output).keys()
        assert len(result) == len(output)
        assert same(result[0], output[0])
        first = next(iter(result))
        assert result[first] is result[0] is getattr(result, first) is result.to_tuple()[0]
        for key in vars(output):
            assert (getattr(result, key) is None) == (getattr(output, key) is None)
        result.extra = 1
        result[first] = pooled
        assert getattr(result, first) is pooled
        assert again(output)[0] is not result[0]
    assert result.hidden_states is None
    assert "hidden_states" not in result


def test_hidden_states_that_are_the_last_one(outputs):
    hidden = torch.randn(2, 3, 4)
    output = outputs.BaseModelOutput(last_hidden_state=hidden, hidden_states=(hidden + 1, hidden))
    parts = pack(output, Torch())
    assert parts.paths == ["last_hidden_state", "hidden_states[0]"]
    result = output_form(parts.form).unpack(parts.leaves)
    assert result.hidden_states[1] is result.last_hidden_state


def test_model_outputs_as_inputs(outputs):
    signature = Signature(lambda output, flag=None: output, Torch())
    hidden = torch.randn(2, 3, 4)
    output = outputs.BaseModelOutput(last_hidden_state=hidden, attentions=(hidden[:1],))
    arguments = signature.take((output,), {})
    assert arguments.paths == ["output.last_hidden_state"]
    seen = arguments.call(lambda output: output, [hidden[:1]])
    assert type(seen) is type(output)
    assert seen.to_tuple()[0] is seen["last_hidden_state"]
    assert same(seen.last_hidden_state, hidden[:1])
    assert seen.attentions[0] is output.attentions[0]
    assert output.last_hidden_state is hidden


def test_batch_encodings():
    pytest.importorskip("transformers")
    from transformers import BatchEncoding

    encodings = types.SimpleNamespace(n_sequences=1)
    ids, mask = torch.ones(2, 5, dtype=torch.long), torch.ones(2, 5, dtype=torch.long)
    signature = Signature(lambda batch: batch, Torch())
    plain = signature.take((BatchEncoding({"input_ids": ids, "mask": mask}),), {})
    assert plain.paths == ['batch["input_ids"]', 'batch["mask"]']
    assert plain.assumed == []
    read = BatchEncoding({"input_ids": ids, "mask": mask}, encoding=[encodings])
    arguments = signature.take((read,), {})
    assert arguments.assumed == ["batch._encodings of a BatchEncoding"]
    seen = arguments.call(lambda batch: batch, [ids[:1], mask[:1]])
    assert type(seen) is BatchEncoding
    assert seen["input_ids"].shape == seen.mask.shape == (1, 5)
    assert seen.encodings is None  # those of the whole batch would not fit
    assert read.encodings == [encodings]


# --- diffusers: the classes themselves where they are installed, else the same shape of them.


class DiagonalGaussianDistribution:
    def __init__(self, parameters, deterministic=False):
        self.parameters = parameters
        self.deterministic = deterministic
        self.mean, logvar = parameters.chunk(2, dim=1)
        self.logvar = logvar.clamp(-30.0, 20.0)
        self.std = (self.logvar / 2).exp()
        self.var = self.logvar.exp()
        if deterministic:
            self.std = self.var = torch.zeros_like(self.mean)

    def sample(self, generator=None):
        return self.mean + self.std * torch.randn(self.mean.shape, generator=generator)


@pytest.fixture
def distribution(monkeypatch):
    if importlib.util.find_spec("diffusers") is not None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from diffusers.models.autoencoders import vae
        return vae.DiagonalGaussianDistribution
    module = types.ModuleType("diffusers.models.autoencoders.vae")
    kind = type("DiagonalGaussianDistribution", (DiagonalGaussianDistribution,), {})
    kind.__module__ = module.__name__
    module.DiagonalGaussianDistribution = kind
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return kind


@pytest.fixture
def encoder_output(monkeypatch, outputs):
    if importlib.util.find_spec("diffusers") is not None:
        from diffusers.models.modeling_outputs import AutoencoderKLOutput

        return AutoencoderKLOutput
    from transformers.utils import ModelOutput

    module = types.ModuleType("diffusers.models.modeling_outputs")
    kind = dataclasses.make_dataclass(
        "AutoencoderKLOutput", [("latent_dist", object)], bases=(ModelOutput,)
    )
    kind.__module__ = module.__name__
    module.AutoencoderKLOutput = kind
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return kind


def test_distributions_are_kept_by_their_parameters(distribution):
    for deterministic in (False, True):
        given = distribution(torch.randn(2, 8, 3, 3) * 9, deterministic)
        parts = pack((given,), Torch())
        assert parts.paths == ["[0].parameters"]
        assert parts.leaves[0] is given.parameters
        [result] = again((given,))
        assert type(result) is distribution
        assert result.deterministic is deterministic
        for name in ("parameters", "mean", "logvar", "std", "var"):
            assert same(getattr(result, name), getattr(given, name))
    assert pack((given,), Torch()).form != pack((distribution(given.parameters),), Torch()).form


def test_samples_are_drawn_anew(distribution):
    given = distribution(torch.randn(2, 8, 3, 3))
    result = again((given,))[0]
    assert not torch.equal(result.sample(), result.sample())
    seeded = [d.sample(torch.Generator().manual_seed(3)) for d in (given, result)]
    assert same(*seeded)


def test_outputs_of_an_autoencoder(distribution, encoder_output):
    given = encoder_output(latent_dist=distribution(torch.randn(2, 8, 3, 3)))
    assert pack(given, Torch()).paths == ["latent_dist.parameters"]
    result = again(given)
    assert type(result) is encoder_output
    assert result[0] is result.latent_dist is result["latent_dist"]
    assert same(result.latent_dist.mean, given.latent_dist.mean)
    given.latent_dist.extra = 1
    with pytest.raises(Unsuited, match="with attributes of its own"):
        pack(given, Torch())


def test_distributions_of_a_module_that_is_gone(distribution, monkeypatch):
    parts = pack((distribution(torch.randn(2, 8, 3, 3)),), Torch())
    monkeypatch.delitem(sys.modules, distribution.__module__)
    with pytest.raises(Bypass, match="its class is not there"):
        output_form.__wrapped__(parts.form)


# --- Tensors.


def test_memory_formats_come_back():
    given = torch.randn(4, 3, 5, 6).contiguous(memory_format=torch.channels_last)
    lstm = torch.nn.LSTM(3, 7, batch_first=True)
    with torch.no_grad():
        states = lstm(torch.randn(4, 2, 3))
    for output in (given, given[:1], states, (torch.randn(3, 4).t(),)):
        result = again(output, rows=4)
        leaves, found = pack(output, Torch()).leaves, pack(result, Torch()).leaves
        for leaf, match in zip(leaves, found, strict=True):
            assert same(leaf, match)
            assert leaf.stride() == match.stride()


def test_one_row_says_the_order_of_a_batch():
    lstm = torch.nn.LSTM(3, 7, batch_first=True)
    with torch.no_grad():
        one, batch = (lstm(torch.randn(rows, 2, 3))[0] for rows in (1, 4))
    form = output_form(pack(one, Torch(), rows=1).form)
    assert form.unpack([torch.zeros(4, 2, 7)]).stride() == batch.stride()
    assert pack(one, Torch(), rows=1).form == pack(batch, Torch(), rows=4).form


def test_packed_sequences():
    given = torch.nn.utils.rnn.pack_sequence([torch.ones(2, 1), torch.zeros(1, 1)])
    result = again(given)
    assert type(result) is type(given)
    assert same(result.data, given.data)
    assert result.sorted_indices is None


def test_devices_are_those_of_the_input():
    cpu, meta = torch.ones(2), torch.ones(2, device="meta")
    assert output_form(pack([cpu], Torch()).form).leaves == [("torch", "cpu", ())]
    assert output_form(pack([cpu], Torch(), like=cpu).form).leaves == [("torch", "", ())]
    assert output_form(pack([cpu], Torch(), like=meta).form).leaves == [("torch", "cpu", ())]


def test_devices_of_inputs():
    signature = Signature(lambda x, y=None: x, Torch())
    cpu, meta = torch.ones(2), torch.ones(2, device="meta")
    taken = [signature.take((one, other), {}) for one in (cpu, meta) for other in (cpu, meta)]
    assert len({arguments.form for arguments in taken}) == 4
    for arguments, first in zip(taken, (cpu, cpu, meta, meta), strict=True):
        assert arguments.tensors[0] is first


def test_what_of_pytorch_cannot_be_kept():
    for output, reason in (
        (torch.nn.Parameter(torch.ones(2)), "a Parameter in the result"),
        (torch.ones(2, requires_grad=True), "gradients of the result are recorded"),
        (torch.ones(2).to_sparse(), "sparse"),
        ({"a": [torch.ones(2).numpy()]}, r'\["a"\]\[0\] is a numpy.ndarray, no tensor of the'),
    ):
        with pytest.raises(Unsuited, match=reason):
            pack(output, Torch())


def test_arguments_of_pytorch():
    signature = Signature(lambda x, dtype=None, size=None: x, Torch())
    x = torch.ones(5, 3)
    forms = {
        signature.take((x, value), {}).form
        for value in (None, torch.float32, torch.float16, torch.device("cpu"), torch.Size([1, 2]))
    }
    assert len(forms) == 5
    assert signature.take((x, x.max(0)), {}).paths == ["x"]
    pair = signature.take((x, x.max(1)), {})
    assert pair.paths == ["x", "dtype[0]", "dtype[1]"]
    seen = pair.call(lambda x, dtype: dtype, [x, x[:, 0] + 1, x[:, 0]])
    assert type(seen) is torch.return_types.max
    assert same(seen.values, x[:, 0] + 1)
    with pytest.raises(Bypass, match="gradients of an argument are recorded"):
        signature.take((x, torch.ones(3, requires_grad=True)), {})


def test_parameters_and_tensors_of_one_shape():
    signature = Signature(lambda x: x, Torch())
    x = torch.ones(5, 3)
    for _ in range(3):
        forms = {signature.take((value,), {}).form for value in (x, torch.nn.Parameter(x))}
        assert len(forms) == 2
