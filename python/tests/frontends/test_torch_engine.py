"""Nests in and out, rows and batches, and the options that say what answers depend on."""

import collections
import dataclasses

import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

import tensorkey as tk  # noqa: E402
from tensorkey import errors  # noqa: E402
from tensorkey.torch import CachedLayer  # noqa: E402

RUNS = collections.Counter()  # a global, so that it is no part of a layer


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)
    RUNS.clear()


class Anything(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, *inputs, **options):
        RUNS["calls"] += 1
        RUNS["rows"] += max((len(x) for x in inputs if isinstance(x, torch.Tensor)), default=0)
        return self.function(*inputs, **options)


def cached_function(function, **options):
    options = {"bypass": "never"} | options
    return CachedLayer(Anything(function), **options)


def same(one, other):
    return one.dtype == other.dtype and torch.equal(one, other)


# --- Nests in and out.

Pair = collections.namedtuple("Pair", "first second")


@dataclasses.dataclass
class Parts:
    mean: torch.Tensor
    rest: list
    note: str = "noted"


def test_named_tuples_and_data_classes_come_back_as_they_were():
    def forward(x):
        return Pair({"twice": x * 2, "none": None}, Parts(x.sum(1), [x > 0, 3]))

    cached = cached_function(forward)
    x = torch.randn(20, 3)
    for _ in range(2):
        output = cached(x)
        assert type(output) is Pair
        assert list(output.first) == ["twice", "none"]
        assert same(output.first["twice"], x * 2)
        assert output.first["none"] is None
        assert type(output.second) is Parts
        assert same(output.second.mean, x.sum(1))
        assert same(output.second.rest[0], x > 0)
        assert (output.second.rest[1], output.second.note) == (3, "noted")
        output.second.rest.append("mine")  # the caller's own
    assert (cached.stats.misses, cached.stats.hits) == (20, 20)
    assert cached.stats.bypasses == {}


def test_a_dict_in_and_a_tuple_with_a_constant_out():
    table = torch.arange(5.0)

    def forward(batch, options=None):
        return batch["x"] * options["scale"], None, table * options["scale"], batch["mask"].sum(1)

    cached = cached_function(forward)
    x, mask = torch.randn(20, 3), torch.rand(20, 3) > 0.5
    for scale in (2.0, 3.0):
        for _ in range(2):
            rows, none, constant, count = cached({"x": x, "mask": mask}, options={"scale": scale})
            assert same(rows, x * scale)
            assert none is None
            assert same(constant, table * scale)
            assert same(count, mask.sum(1))
            constant.zero_()  # no other answer has it
    cached({"x": x[3:5], "mask": mask[3:5]}, options={"scale": 3.0})
    assert (cached.stats.misses, cached.stats.hits) == (40, 42)
    assert cached.stats.bypasses == {}


def test_a_model_of_transformers():
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        vocab_size=50,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=48,
        max_position_embeddings=16,
    )
    model = transformers.BertModel(config).eval().requires_grad_(False)
    cached = CachedLayer(model, chunk=32, bypass="never")
    ids = torch.randint(0, 50, (40, 8))
    mask = (torch.arange(8)[None] < torch.randint(1, 9, (40, 1))).long()
    plain = model(input_ids=ids, attention_mask=mask)
    for rows in (slice(0, 40), slice(5, 25)):
        output = cached(input_ids=ids[rows], attention_mask=mask[rows])
        assert type(output) is type(plain)
        assert list(output.keys()) == list(plain.keys())
        assert output.hidden_states is None
        assert output[0] is output.last_hidden_state is output["last_hidden_state"]
        assert torch.allclose(output[0], plain[0][rows], atol=1e-5)
        assert torch.allclose(output.pooler_output, plain.pooler_output[rows], atol=1e-5)
    one, other = cached(input_ids=ids, attention_mask=mask, return_dict=False)
    assert torch.allclose(one, plain[0], atol=1e-5)
    assert torch.allclose(other, plain[1], atol=1e-5)
    assert (cached.stats.misses, cached.stats.hits) == (80, 20)
    assert cached.stats.bypasses == {}
    # The model collects its hidden states by hooks of its own, if it is asked for them.
    for _ in range(2):
        output = cached(input_ids=ids, attention_mask=mask, output_hidden_states=True)
        assert len(output.hidden_states) == 3
        assert torch.allclose(output.hidden_states[2], plain[0], atol=1e-5)


@pytest.mark.parametrize("probe", [True, False])
@pytest.mark.parametrize(
    ("function", "path"),
    [
        (lambda x: {"rows": x, "half": x[: len(x) // 2 + 1]}, r'\["half"\]'),
        (lambda x: (x, [x.sum()]), r"\[1\]\[0\]"),
        (lambda x: Pair(x, x.repeat(2, 1)), r"second"),
        (lambda x: x.mean(0), "output"),
    ],
)
def test_a_leaf_that_is_neither_by_row_nor_constant_is_refused_by_its_path(function, path, probe):
    cached = cached_function(function, probe=probe)
    for rows in (20, 12):
        with pytest.raises(errors.InvalidArgument, match=f"leaf .*{path} has neither a row for"):
            cached(torch.randn(rows, 3))
    assert cached.stats.hits == 0


def test_a_form_that_depends_on_the_rows_is_refused():
    cached = cached_function(lambda x: {"large": x} if x[0, 0] > 1 else {"small": x})
    x = torch.zeros(20, 2)
    x[1:] = torch.arange(2.0, 40.0).reshape(19, 2)
    with pytest.raises(errors.InvalidArgument, match="what the output is made of"):
        cached(x)


def test_duplicates_inside_a_batch_run_once():
    cached = cached_function(lambda x: x * 2, chunk=1, probe=False)
    cached(torch.full((1, 2), -1.0))
    RUNS.clear()
    x = torch.arange(6.0).reshape(3, 2)
    order = [0, 1, 0, 2, 2, 1, 0, 0]
    assert same(cached(x[order]), x[order] * 2)
    assert RUNS["rows"] == 3
    assert cached.stats.duplicates == 5
    assert (cached.stats.misses, cached.stats.hits) == (4, 5)


# --- Rows, batches, slots.


def mixing(x):
    return (x @ x.T).softmax(1) @ x, x.sum()


@pytest.mark.parametrize("probe", [True, False])
def test_a_batch_as_one_row(probe):
    """For a layer that mixes rows: exact answers, for the same batch in the same order alone."""
    each = cached_function(lambda x: mixing(x)[0])
    x = torch.randn(20, 4)
    with pytest.raises(errors.Unsupported, match="rows of this layer cannot be cached one by one"):
        each(x)
    cached = cached_function(mixing, rows="batch", probe=probe)
    batches = [x, x[:7], x.flip(0), x[:1], torch.cat([x, x])]
    for _ in range(2):
        for batch in batches:
            for one, other in zip(cached(batch), mixing(batch), strict=True):
                assert same(one, other)
    assert (cached.stats.misses, cached.stats.hits) == (5, 5)
    assert cached.stats.chunk == 1


def test_slots_may_be_accepted():
    layer = nn.Linear(7, 5).requires_grad_(False)
    x = torch.randn(64, 7)
    exact = CachedLayer(layer, bypass="never")
    exact(x)
    if not exact.stats.probe.startswith("slot"):
        pytest.skip("kernels of this processor do not care for the slot")
    assert exact.stats.chunk == 1
    assert "slot" in repr(exact)
    accepting = CachedLayer(layer, bits="slot", verify=1.0, bypass="never")
    for _ in range(3):
        assert torch.allclose(accepting(x), layer(x), atol=1e-6)
    stats = accepting.stats
    assert (stats.chunk, stats.misses, stats.hits) == (32, 64, 128)
    assert "accepted" in stats.probe
    assert stats.verified > 0
    assert stats.deviating == 0  # what was accepted is no deviation
    # Where others run one row at a time they are followed, whatever one accepts.
    cache = tk.ActivationCache("1 MiB")
    for bits in ("chunk", "slot"):
        sharing = CachedLayer(layer, cache=cache, bits=bits, bypass="never")
        sharing(x)
        assert sharing.stats.chunk == 1


# --- Options.


class Answer:
    """No nest of tensors."""

    def __init__(self, rows):
        self.rows = rows


def test_adapters_for_other_outputs():
    plain = cached_function(lambda x: Answer(x * 2))
    x = torch.randn(20, 3)
    for _ in range(2):
        assert same(plain(x).rows, x * 2)
    assert plain.stats.hits == 0
    assert any("cannot be kept" in reason for reason in plain.stats.bypasses)
    cached = cached_function(
        lambda x: Answer(x * 2),
        outputs=(lambda answer: {"rows": answer.rows}, lambda n: Answer(**n)),
    )
    for _ in range(2):
        answer = cached(x)
        assert type(answer) is Answer
        assert same(answer.rows, x * 2)
    assert (cached.stats.misses, cached.stats.hits) == (20, 20)
    with pytest.raises(errors.InvalidArgument, match="to_tensors"):
        CachedLayer(nn.ReLU(), outputs=lambda answer: answer)


def test_an_index_on_the_cpu_for_a_layer_on_the_cpu():
    cached = CachedLayer(nn.Linear(4, 3).requires_grad_(False), index="cpu_input", bypass="never")
    x = torch.randn(32, 4)
    for _ in range(2):
        assert torch.allclose(cached(x), cached.inner(x), atol=1e-6)
        assert cached(x).device == x.device
    assert (cached.stats.misses, cached.stats.hits) == (32, 96)


SETTINGS = {"scale": 2.0}


def test_state_that_the_layer_does_not_hold():
    def forward(x):
        return x * SETTINGS["scale"]

    x = torch.randn(20, 3)
    blind = cached_function(forward, fingerprint="strict")
    seeing = cached_function(forward, fingerprint="strict", state=lambda: SETTINGS)
    try:
        for scale in (2.0, 3.0, 2.0):
            SETTINGS["scale"] = scale
            blind(x)
            assert same(seeing(x), x * scale)
    finally:
        SETTINGS["scale"] = 2.0
    assert (seeing.stats.misses, seeing.stats.hits) == (40, 20)


def test_a_tensor_as_state():
    bias = torch.zeros(3)
    cached = cached_function(lambda x: x + bias, fingerprint="strict", state=bias)
    x = torch.randn(20, 3)
    assert same(cached(x), x)
    bias += 1
    assert same(cached(x), x + 1)
    assert cached.stats.misses == 40


def test_attributes_to_ignore():
    class Counting(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(3, 3)
            self.seen = 0
            self.linear.note = "one"

        def forward(self, x):
            return self.linear(x)

    layer = Counting().requires_grad_(False)
    looking = CachedLayer(layer, fingerprint="strict", bypass="never")
    ignoring = CachedLayer(
        layer, fingerprint="strict", bypass="never", ignore=("seen", "linear.note")
    )
    x = torch.randn(32, 3)
    for i in range(3):
        layer.seen, layer.linear.note = i, f"{i}"
        looking(x)
        ignoring(x)
    assert (looking.stats.misses, looking.stats.hits) == (96, 0)
    assert (ignoring.stats.misses, ignoring.stats.hits) == (32, 64)
    with pytest.raises(errors.InvalidArgument, match="ignore"):
        CachedLayer(layer, ignore="seen")


def test_a_portable_environment_has_no_threads_in_it():
    cache = tk.ActivationCache("1 MiB")
    layer = nn.Linear(8, 8).requires_grad_(False)
    x = torch.randn(32, 8)
    threads = torch.get_num_threads()
    for environment, misses in (("exact", 32), ("portable", 0)):
        options = {"environment": environment, "cache": cache, "bypass": "never"}
        first, second = (CachedLayer(layer, **options) for _ in range(2))
        first(x)
        try:
            torch.set_num_threads(threads + 1)
            assert torch.allclose(second(x), layer(x), atol=1e-6)
        finally:
            torch.set_num_threads(threads)
        assert first.stats.misses == 32  # exact and portable answers are apart
        assert second.stats.misses == misses
        assert second.stats.hits == 32 - misses


def test_answers_by_the_structure_of_inputs():
    def positions(x, offset=0):
        return torch.arange(x.shape[1]).expand(len(x), -1) + offset

    cached = cached_function(positions, by="structure")
    for _ in range(2):
        for shape in ((4, 6), (5, 6), (4, 7)):
            x = torch.randn(shape)
            assert same(cached(x), positions(x))
            assert same(cached(x, offset=1), positions(x, 1))
    stats = cached.stats
    assert (stats.misses, stats.hits, stats.bypasses) == (6, 6, {})
    assert any("structure" in text for text in stats.assumptions)


def test_the_claim_of_structure_is_checked():
    cached = cached_function(lambda x: x * 2, by="structure", on_error="raise")
    cached(torch.ones(2, 2))

    def often():
        for _ in range(1000):
            cached(torch.zeros(2, 2))

    with pytest.raises(errors.CorruptEntry, match="differ"):
        often()
    assert cached.stats.deviating > 0


def test_adapters_are_a_part_of_the_scope():
    """Two layers of one cache, which differ in what is made of the output."""
    cache = tk.ActivationCache("1 MiB")
    inner = nn.Linear(4, 2).requires_grad_(False)
    x = torch.randn(3, 4)

    def double(output):
        return output * 2

    def same(output):
        return output

    plain = CachedLayer(inner, cache=cache, bypass="never")
    doubled = CachedLayer(inner, cache=cache, bypass="never", outputs=(double, same))
    again = CachedLayer(inner, cache=cache, bypass="never", outputs=(same, double))
    expected = plain(x)
    assert torch.equal(doubled(x), expected * 2)
    assert torch.equal(again(x), expected * 2)
    assert torch.equal(again(x), expected * 2)
    assert plain.stats.hits == doubled.stats.hits == 0


def test_structure_is_no_key_of_the_callers_own():
    cache = tk.ActivationCache("1 MiB")
    inner = nn.Linear(4, 2).requires_grad_(False)
    by_content = CachedLayer(inner, cache=cache, bypass="never", rows="batch")
    by_structure = CachedLayer(inner, cache=cache, bypass="never", by="structure")
    ones, zeros = torch.ones(3, 4), torch.zeros(3, 4)
    assert torch.equal(by_structure(ones), by_content(ones))
    assert torch.equal(by_content(zeros), by_content(zeros))
    assert by_content.stats.hits == 1
    assert by_structure._engine._about != by_content._engine._about
