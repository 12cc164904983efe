"""What else the bits depend on: switches, threads and processors share no answers."""

import contextlib
import json
import os
import platform
import subprocess
import sys

import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

from tensorkey._torch_environment import _model_in, cpu_model, environment  # noqa: E402
from tensorkey.torch import CachedLayer  # noqa: E402


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def encoder():
    return nn.Sequential(nn.Linear(16, 32), nn.Tanh()).eval().requires_grad_(False)


def test_the_tuple_is_as_documented():
    now = environment(torch.ones(1))
    base = tuple(map(int, now[0].split(".")))
    assert torch.__version__.startswith(now[0])
    assert len(base) == 3
    assert now[1:4] == ("eager", "cpu", platform.machine())
    assert now[4] == torch.backends.cpu.get_cpu_capability()
    assert now[5] == cpu_model()
    assert now[6] == torch.get_num_threads()
    assert now[7:10] == ("ieee", "ieee", "ieee")
    assert now[10:13] == (False, "", "torch.float32")
    assert now[13:] == (True, True, True, True, True, False)


def test_portable_leaves_out_the_processor_and_its_threads():
    now, portable = environment(torch.ones(1)), environment(torch.ones(1), portable=True)
    assert portable[4:7] == ("", "", 0)
    assert portable[:4] + portable[7:] == now[:4] + now[7:]
    assert now[4:7] != portable[4:7]


def test_models_of_processors():
    x86 = "processor\t: 0\nmodel\t\t: 17\nmodel name\t: One CPU @ 2 GHz\n\nmodel name\t: Other\n"
    arm = "processor\t: 0\nCPU implementer\t: 0x41\nCPU variant\t: 0x3\nCPU part\t: 0xd0c\n"
    assert _model_in(x86) == "One CPU @ 2 GHz"
    assert _model_in(arm) == "0x41 0xd0c"
    assert _model_in("") == ""


@contextlib.contextmanager
def attribute(owner, name, value):
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)


@contextlib.contextmanager
def switch(set_to, value, before):
    set_to(value)
    try:
        yield
    finally:
        set_to(before)


def switches():
    backends = torch.backends
    threads = torch.get_num_threads()
    precision = torch.set_float32_matmul_precision
    mkldnn = backends.mkldnn
    return {
        "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
        "autocast to float16": lambda: torch.autocast("cpu", torch.float16),
        "threads": lambda: switch(torch.set_num_threads, threads + 1, threads),
        "medium": lambda: switch(precision, "medium", "highest"),
        "high": lambda: switch(precision, "high", "highest"),
        "conv": lambda: attribute(mkldnn.conv, "fp32_precision", "bf16"),
        "rnn": lambda: attribute(mkldnn.rnn, "fp32_precision", "bf16"),
        "mkldnn": lambda: switch(torch._C._set_mkldnn_enabled, False, True),
        "nnpack": lambda: backends.nnpack.flags(enabled=False),
        # Its public name imports the compiler, which takes seconds.
        "deterministic": lambda: switch(torch._C._set_deterministic_algorithms, True, False),
        "flash": lambda: switch(backends.cuda.enable_flash_sdp, False, True),
        "math": lambda: switch(backends.cuda.enable_math_sdp, False, True),
        "fast path": lambda: switch(backends.mha.set_fastpath_enabled, False, True),
        "denormals": lambda: switch(torch.set_flush_denormal, True, False),
        "default dtype": lambda: switch(torch.set_default_dtype, torch.float64, torch.float32),
    }


@pytest.mark.parametrize("name", switches())
def test_a_switch_is_another_scope_and_back_the_same(name):
    cached = CachedLayer(encoder(), bypass="never")
    x = torch.randn(20, 16)
    with torch.no_grad():
        expected = cached(x)
        with switches()[name]():
            cached(x)
            assert (cached.stats.hits, cached.stats.misses) == (0, 40)
            cached(x)
            assert cached.stats.hits == 20
        assert torch.equal(cached(x), expected)
    assert cached.stats.hits == 40
    assert cached.stats.bypasses == {}


def test_old_and_new_switches_of_precision_may_be_mixed():
    cached = CachedLayer(encoder(), bypass="never")
    x = torch.randn(20, 16)
    matmul = torch.backends.mkldnn.matmul
    with switch(torch.set_float32_matmul_precision, "high", "highest"):
        with attribute(matmul, "fp32_precision", "bf16"):
            with pytest.raises(RuntimeError):
                torch.get_float32_matmul_precision()
            cached(x)
        cached(x)
    assert cached.stats.misses == 40
    assert cached.stats.bypasses == {}


PROGRAM = """
import json, sys
import torch
from tensorkey.torch import CachedLayer
torch.manual_seed(0)
layer = torch.nn.Sequential(torch.nn.Linear(16, 24), torch.nn.Tanh()).requires_grad_(False)
cached = CachedLayer(layer, disk=sys.argv[1], bypass="never", chunk=1)
x = torch.randn(20, 16)
close = torch.allclose(cached(x), layer(x), atol=1e-5)
assert cached.cache.flush()
print(json.dumps([torch.backends.cpu.get_cpu_capability(), cached.stats.hits, close]))
"""


def test_capabilities_of_the_processor_share_no_answers(tmp_path):
    def run(capability):
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM, tmp_path / "activations"],
            env={**os.environ, "ATEN_CPU_CAPABILITY": capability},
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    assert run("default") == ["DEFAULT", 0, True]
    other, hits, close = run("avx2")
    assert (hits, close) == (20 if other == "DEFAULT" else 0, True)  # where there is no AVX2
