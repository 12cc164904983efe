"""The probe must detect what measurements showed of real layers, and pass what is clean."""

import random
import warnings

import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

from tensorkey import errors  # noqa: E402
from tensorkey.torch import CachedLayer  # noqa: E402


@pytest.fixture(autouse=True)
def _seed(monkeypatch):
    torch.manual_seed(0)
    monkeypatch.setattr("tensorkey._probe.MAX_SECONDS", 600.0)  # as on an idle machine


def run(layer, *inputs, **options):
    cached = CachedLayer(layer.requires_grad_(False), **options)
    return cached, cached(*inputs)


class Elementwise(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


class Masked(nn.Module):
    """A TransformerEncoder that packs rows of different lengths into a nested tensor."""

    def __init__(self):
        super().__init__()
        layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2)

    def forward(self, x, mask):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # nested tensors are a prototype
            return self.encoder(x, src_key_padding_mask=mask)


def padded(rows, length):
    lengths = torch.randint(2, length + 1, (rows, 1))
    lengths[0] = length
    return torch.randn(rows, length, 32), torch.arange(length)[None] >= lengths


def quantized():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecated, and in use
        return torch.ao.quantization.quantize_dynamic(nn.Sequential(nn.Linear(16, 16)).eval())


class LastBitBySlot(nn.Module):
    """As a kernel with scalar tails: in every other place the last bit is another."""

    def forward(self, x):
        up = torch.nextafter(x, torch.tensor(torch.inf))
        odd = torch.arange(len(x))[:, None] % 2 == 1
        return torch.where(odd, up, x)


def test_bits_that_depend_on_the_slot_run_one_row_at_a_time():
    cached, output = run(LastBitBySlot(), torch.randn(40, 7))
    stats = cached.stats
    assert stats.chunk == 1
    assert stats.probe.startswith("slot: ")
    assert "runs one row at a time" in repr(cached)
    assert stats.probe_runs > 0
    assert stats.padded_rows == 0
    assert stats.misses == stats.lookups == 40  # the probe's runs count nowhere else
    assert output.shape == (40, 7)


def test_small_matrix_products_depend_on_the_slot_on_some_processors():
    linear, x = nn.Linear(7, 5), torch.randn(40, 7)
    with torch.no_grad():
        by_slot = any(gap_of_one_row_in_a_chunk(linear, row, 32) for row in x[:16])
        alone = torch.cat([linear(row[None].clone()) for row in x])
    cached, output = run(linear, x)
    assert cached.stats.chunk == (1 if by_slot else 32)
    if by_slot:
        assert torch.equal(output, alone)


def gap_of_one_row_in_a_chunk(function, row, size):
    output = function(row.repeat(size, 1))
    return any(not torch.equal(output[0], other) for other in output)


@pytest.mark.parametrize(
    ("function", "dtype"),
    [(nn.functional.silu, torch.float32), (nn.functional.gelu, torch.float16)],
)
def test_scalar_tails_of_elementwise_kernels(function, dtype):
    """Tails are elements past a whole vector: none in float32 at 32 rows, some in float16."""
    x = (torch.randn(40, 3) * 3).to(dtype)
    by_slot = any(gap_of_one_row_in_a_chunk(function, row, 32) for row in x[:16])
    cached, output = run(Elementwise(function), x)
    assert cached.stats.chunk == (1 if by_slot else 32)
    assert cached.stats.probe.startswith("slot: " if by_slot else "clean: ")
    if by_slot:
        alone = torch.cat([function(row[None].clone()) for row in x])
        assert torch.equal(output, alone)


def test_the_nested_tensor_path_is_refused_with_the_evidence():
    inputs = padded(40, 9)
    with pytest.raises(errors.Unsupported, match=r"the outputs of \d+ rows change"):
        run(Masked().eval(), *inputs)


def test_dynamic_quantization_is_refused_with_the_evidence():
    x = torch.randn(40, 16) * torch.logspace(-2, 2, 40)[:, None]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(errors.Unsupported, match="rows depend on each other"):
            run(quantized(), x)
        with pytest.raises(errors.Unsupported, match="rows depend on each other"):
            run(quantized(), x, chunk=1)


def test_rows_that_see_their_batch_are_refused_at_any_chunk():
    for chunk in (1, 32):
        with pytest.raises(errors.Unsupported, match="rows depend on each other"):
            run(Elementwise(lambda x: x - x.mean(0)), torch.randn(40, 8), chunk=chunk)


def test_rows_that_see_their_place_are_refused():
    positions = Elementwise(lambda x: x + torch.arange(len(x))[:, None])
    with pytest.raises(errors.Unsupported, match="depend on their place"):
        run(positions, torch.randn(40, 8))


@pytest.mark.parametrize(
    "noise",
    [
        lambda x: nn.functional.dropout(x, training=True),
        lambda x: x + random.random(),
        lambda x: x + torch.rand(()),
    ],
)
@pytest.mark.parametrize("chunk", [1, 32])
def test_random_layers_are_refused_and_the_random_state_is_put_back(noise, chunk):
    x = torch.randn(40, 8)
    before, python = torch.get_rng_state(), random.getstate()
    with pytest.raises(errors.Unsupported, match="draws random numbers"):
        run(Elementwise(noise), x, chunk=chunk)
    assert torch.equal(torch.get_rng_state(), before)
    assert random.getstate() == python


def test_numpy_noise_is_refused():
    numpy = pytest.importorskip("numpy")
    before = numpy.random.get_state()[1].copy()
    with pytest.raises(errors.Unsupported, match="draws random numbers"):
        run(Elementwise(lambda x: x + numpy.random.random()), torch.randn(40, 8))
    assert (numpy.random.get_state()[1] == before).all()


def test_statistics_of_the_batch_are_refused_and_put_back():
    layer = nn.BatchNorm1d(8)
    before = {key: value.clone() for key, value in layer.state_dict().items()}
    with pytest.raises(errors.Unsupported, match=r"changes its own state \(.*running_mean"):
        run(layer, torch.randn(40, 8))
    assert all(torch.equal(value, before[key]) for key, value in layer.state_dict().items())
    cached, _ = run(layer.eval(), torch.randn(40, 8))
    assert cached.stats.probe.startswith("clean")


def test_a_counting_layer_is_refused_and_one_that_warms_up_is_not():
    class Counting(nn.Module):
        calls = 0

        def forward(self, x):
            self.calls += 1
            return x

    with pytest.raises(errors.Unsupported, match=r"changes its own state \(attributes\)"):
        run(Counting(), torch.randn(40, 8))

    class Lazy(nn.Module):
        table = None

        def forward(self, x):
            if self.table is None:
                self.table = torch.arange(8.0)
            return x + self.table

    cached, _ = run(Lazy(), torch.randn(40, 8))
    x = torch.randn(40, 8)
    cached(x)
    cached(x)
    assert cached.stats.hits == 40
    assert cached.stats.probe.startswith("clean")


def test_a_refused_layer_is_refused_again_and_accepted_when_cured():
    layer = nn.Sequential(nn.Linear(8, 8), nn.Dropout()).requires_grad_(False)
    cached = CachedLayer(layer)
    x = torch.randn(40, 8)
    for _ in range(2):
        with pytest.raises(errors.Unsupported, match=r"layer\.eval\(\)"):
            cached(x)
    runs = cached.stats.probe_runs
    assert runs < 10  # a refusal is remembered
    cached.eval()
    assert torch.equal(cached(x), layer(x))
    assert cached.stats.entries == 40


def test_a_layer_that_turns_random_later_runs_uncached():
    layer = nn.Sequential(nn.Linear(8, 8), nn.Dropout()).requires_grad_(False).eval()
    cached = CachedLayer(layer)
    x = torch.randn(40, 8)
    cached(x)
    cached.train()
    one, two = cached(x), cached(x)
    assert not torch.equal(one, two)
    (reason,) = cached.stats.bypasses
    assert reason.startswith("refused by the probe: it draws random numbers")
    cached.eval()
    cached(x)
    assert cached.stats.hits == 40


def test_one_row_is_not_enough_to_judge_neighbours():
    cached, _ = run(Elementwise(lambda x: x - x.mean(0)), torch.ones(1, 8))
    assert "not yet measured" in cached.stats.probe
    with pytest.raises(errors.Unsupported, match="rows depend on each other"):
        cached(torch.randn(4, 8))


def test_equal_rows_are_one_row():
    cached, _ = run(Elementwise(lambda x: x - x.mean(0)), torch.ones(40, 8))
    assert "not yet measured" in cached.stats.probe


def test_no_probe_says_so():
    cached, _ = run(nn.Linear(8, 8), torch.randn(40, 8), probe=False)
    assert cached.stats.probe == "unproven: probe=False"


@pytest.mark.parametrize("probe", [True, False])
@pytest.mark.parametrize("rows", [1, 4, 40])
@pytest.mark.parametrize(
    "function",
    [lambda x: x.sum(0, keepdim=True), lambda x: x[:-1], lambda x: x.flatten()],
)
def test_another_batch_size_is_an_error_before_anything_is_stored(function, rows, probe):
    cached = CachedLayer(Elementwise(function), probe=probe)
    with pytest.raises(errors.InvalidArgument, match="expected one output row for each input row"):
        cached(torch.randn(rows, 8))
    assert cached.stats.entries == 0


def test_the_clock_ends_a_probe_but_not_before_three_shifts():
    from tensorkey._probe import probe

    class Slow:
        def __init__(self):
            self.runs = 0

        def run(self, inputs):
            self.runs += 1
            return inputs[0]

        def take(self, inputs, rows):
            return tuple(x[list(rows)] for x in inputs)

        def gap(self, one, other):
            from tensorkey._torch_backend import Rows

            return Rows().gap(one, other)

        def random_state(self):
            return None

        def set_random_state(self, state):
            pass

    class Still:
        def changes(self):
            return []

        def restore(self):
            raise AssertionError

    time = iter(range(0, 10**6, 1000))
    slow = Slow()
    verdict = probe(slow, Still(), (torch.randn(40, 8),), range(40), 32, lambda: next(time))
    assert verdict.text == (
        "clean: 16 rows keep their bits wherever they stand in a chunk of 32 and whatever stands "
        "beside them"
    )
    assert slow.runs == 9  # two to settle, four in order and shifted, three beside others
