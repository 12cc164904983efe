"""Entries shared by Python and C++: what one language stores, the other reads.

The C++ half is the program that scripts/libtorch.sh builds, tests/consumers/torch/share.h.
"""

from __future__ import annotations

import os
import platform
import struct
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from tensorkey import _core, key  # noqa: E402
from tensorkey.torch import CachedLayer  # noqa: E402

ROOT = Path(__file__).parents[3]
PROGRAM = ROOT / "build" / "libtorch" / "build" / "torch_test"
SCOPE = "shared v1"

pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")


class Encoder(torch.nn.Module):
    """With what a scripted module may hold: submodules, a buffer, a number, constants."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = torch.nn.Sequential(torch.nn.Linear(3, 16), torch.nn.GELU())
        self.norm = torch.nn.BatchNorm1d(16)
        self.register_buffer("shift", torch.ones(16))
        self.scale = 0.1

    def forward(self, x: torch.Tensor, times: int = 2) -> torch.Tensor:
        return self.norm(self.inner(x)) * self.scale * times + self.shift + 1e-7


class Affine(torch.nn.Module):
    """What the C++ program does as a function."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * 2 + 1


@pytest.fixture
def script(tmp_path) -> Path:
    torch.manual_seed(0)
    file = tmp_path / "encoder.pt"
    torch.jit.script(Encoder().eval().requires_grad_(False)).save(file)
    return file


def rows() -> torch.Tensor:
    return torch.arange(12.0).reshape(4, 3)


def program(*words: str | Path) -> dict[str, Any]:
    """Run the C++ half with as many threads as this process has."""
    assert PROGRAM.exists(), "first: scripts/libtorch.sh"
    done = subprocess.run(
        [PROGRAM, "share", *map(str, words)],
        capture_output=True,
        text=True,
        timeout=120,
        env=os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())},
    )
    assert done.returncode == 0, done.stderr
    lines = [line.partition(" ")[::2] for line in done.stdout.splitlines()]
    found: dict[str, Any] = dict(lines)
    found["tensors"] = [value for name, value in lines if name == "tensor"]
    assert "uncached" not in found, found
    return found


# --- The encoding of docs/key_format.md, written down once more


def item(tag: str, body: bytes) -> bytes:
    return tag.encode() + struct.pack("<Q", len(body)) + body


def encoded(value: object) -> bytes:
    if value is None:
        return item("N", b"")
    if isinstance(value, bool):
        return item("b", bytes([value]))
    if isinstance(value, int):
        return item("i", str(value).encode())
    if isinstance(value, str):
        return item("S", value.encode())
    if isinstance(value, bytes):
        return item("B", value)
    assert isinstance(value, tuple)
    return item("t", b"".join(map(encoded, value)))


def joined(tag: str, parts: Iterable[bytes]) -> bytes:
    return item(tag, b"".join(parts))


def blake3(data: bytes) -> bytes:
    return bytes(_core.blake3(data))


def cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        name, _, value = line.partition(":")
        if name.strip() == "model name":
            return value.strip()
    pytest.skip("no model name in /proc/cpuinfo")


def environment() -> tuple[object, ...]:
    def precision(what: str) -> str:
        found = torch._C._get_fp32_precision_getter("mkldnn", what)
        return "ieee" if found == "none" else found

    return (
        torch.__version__.partition("+")[0],
        "eager",
        "cpu",
        platform.machine(),
        torch.backends.cpu.get_cpu_capability(),
        cpu_model(),
        torch.get_num_threads(),
        precision("matmul"),
        precision("conv"),
        precision("rnn"),
        False,
        "",
        "torch.float32",
        torch._C._get_mkldnn_enabled(),
        torch._C._get_nnpack_enabled(),
        torch._C._get_flash_sdp_enabled(),
        torch._C._get_math_sdp_enabled(),
        True,
        False,
    )


def test_scope_of_a_script_by_hand(script):
    found = program("digests", script)
    assert found["key"] == key(rows()).hex()
    assert found["environment"] == encoded(environment()).hex()

    row = joined("r", map(encoded, ("torch.Tensor", "torch.float32", "cpu")))
    call = joined("d", [encoded("x"), row])
    form = joined("t", [encoded(None), call, joined("t", []), joined("d", [])])
    assert found["form"] == form.hex()

    about = (
        *("tensorkey about", 1, "torch", "forward", "each", None),
        *(environment(), SCOPE.encode(), "", bytes.fromhex(found["structure"]), form),
    )
    assert found["about"] == blake3(encoded(about)).hex()


def test_weights_of_a_script_by_hand(script):
    module = torch.jit.load(script)
    tensors = {f"layer.{name}": value for name, value in module.state_dict().items()}
    found = program("digests", script)
    assert sorted(found["tensors"]) == sorted(tensors)
    content = (
        encoded(name) + item("K", bytes(key(value))) for name, value in sorted(tensors.items())
    )
    assert found["weights"] == blake3(joined("t", content)).hex()


# --- Entries: (hits, misses) and the bits of the answer


def of_python(layer: CachedLayer) -> tuple[int, int, str]:
    with torch.no_grad():
        output = layer(rows())
    layer.cache.flush()
    assert layer.stats.hits + layer.stats.misses == len(rows())
    return layer.stats.hits, layer.stats.misses, bytes(output.contiguous().view(-1).numpy()).hex()


def of_cpp(*words: str | Path) -> tuple[int, int, str]:
    found = program(*words)
    return int(found["hits"]), int(found["misses"]), found["output"]


def scripted(file: Path, directory: Path) -> CachedLayer:
    return CachedLayer(torch.jit.load(file), disk=directory, scope=SCOPE)


def manual(directory: Path) -> CachedLayer:
    return CachedLayer(Affine(), disk=directory, scope=SCOPE, fingerprint="manual")


def test_a_script_from_python_to_cpp(script, tmp_path):
    hits, misses, answer = of_python(scripted(script, tmp_path / "cache"))
    assert (hits, misses) == (0, 4)
    assert of_cpp("script", script, tmp_path / "cache") == (4, 0, answer)


def test_a_script_from_cpp_to_python(script, tmp_path):
    hits, misses, answer = of_cpp("script", script, tmp_path / "cache")
    assert (hits, misses) == (0, 4)
    assert of_python(scripted(script, tmp_path / "cache")) == (4, 0, answer)


def test_manual_from_python_to_cpp(tmp_path):
    hits, misses, answer = of_python(manual(tmp_path))
    assert (hits, misses) == (0, 4)
    assert of_cpp("manual", tmp_path) == (4, 0, answer)


def test_manual_from_cpp_to_python(tmp_path):
    hits, misses, answer = of_cpp("manual", tmp_path)
    assert (hits, misses) == (0, 4)
    assert of_python(manual(tmp_path)) == (4, 0, answer)
