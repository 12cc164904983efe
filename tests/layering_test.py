"""Layers: a file looks down or beside itself, never up; the core knows no framework.

The rules are functions from a tree to the lines that break them, so that the tests can feed them a
small tree that does.
"""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

LAYERS = ("base", "view", "digest", "key", "map", "policy", "store", "memo", "frontends", "cli")
RANK = {layer: rank for rank, layer in enumerate(LAYERS)}
# Public headers whose layer has another name than they have.
HEADER_LAYER = {
    "canonical": "base",
    "export": "base",
    "error": "base",
    "version": "base",
    "dtype": "view",
    "simulate": "policy",
    "cache": "store",
    "codec": "store",
    "entry": "store",
    "entry_format": "store",
    "bypass": "memo",
    "fingerprint": "memo",
    "hints": "memo",
    "layer": "memo",
    "layer_task": "memo",
    "probe": "memo",
    "tensorkey": "frontends",
    "torch": "frontends",
}
INCLUDE = re.compile(r'\s*#\s*include\s*([<"])([^>"]+)[>"]')
# Headers of a framework or an interpreter; and the third parties, each at home in one layer
# (a test may use them as a reference).
FRAMEWORK_HEADER = re.compile(r"(Python\.h|nanobind/|torch/|ATen/|c10/|numpy/|tensorflow/|xla/).*")
THIRD_PARTY_HOME = {"xxhash.h": "digest", "hwy/": "digest", "zstd.h": "store", "sqlite3.h": "store"}

FRAMEWORKS = {"numpy", "torch", "tensorflow", "keras", "jax", "jaxlib", "ml_dtypes"}
BRINGS_NUMPY = {"tensorflow", "keras", "jax"}  # they do not work without it


# --- C++


def layer_of(path: Path, root: Path) -> str | None:
    """Return the layer that a C++ file belongs to, None for files outside the layers."""
    parts = path.relative_to(root).parts
    if parts[:3] == ("include", "tensorkey", "torch"):
        return "frontends"
    if parts[:2] == ("include", "tensorkey"):
        return HEADER_LAYER.get(path.stem, path.stem)
    if parts[0] == "src":
        return parts[1]
    return "frontends" if parts[:2] == ("python", "src") else None


def resolve(name: str, source: Path, root: Path) -> Path | None:
    """Return the file of ours that an include names, None for everybody else's."""
    candidates = (source.parent / name, root / "src" / name, root / "include" / name)
    return next((c for c in candidates if c.is_file()), None)


def cpp_files(root: Path) -> Iterator[Path]:
    for folder in ("include", "src", "python/src"):
        yield from sorted(p for p in (root / folder).rglob("*") if p.suffix in {".cc", ".h"})


def cpp_violations(root: Path) -> list[str]:
    found = []
    for path in cpp_files(root):
        layer = layer_of(path, root)
        place = path.relative_to(root)
        if layer not in RANK:
            found.append(f"{place}:1: no layer is called {layer}")
            continue
        for number, line in enumerate(path.read_text().splitlines(), 1):
            if match := INCLUDE.match(line):
                reason = cpp_reason(match[1], match[2], path, layer, root)
                if reason:
                    found.append(f"{place}:{number}: {line.strip()}  -- {reason}")
    return found


def cpp_reason(quote: str, name: str, path: Path, layer: str, root: Path) -> str | None:
    """Return what is wrong with one include, None if it is allowed."""
    target = resolve(name, path, root)
    if target is not None:
        other = layer_of(target, root)
        if other in RANK and RANK[other] > RANK[layer]:
            return f"{layer} looks up to {other}"
        return None
    if quote == '"':
        return "no such file in the tree"
    if FRAMEWORK_HEADER.match(name) and layer != "frontends":
        return f"{layer} knows a framework"
    if path.is_relative_to(root / "include") and layer != "frontends" and "." in name:
        return "a public header includes somebody else's"
    if path.stem.endswith("_test"):
        return None
    homes = [home for prefix, home in THIRD_PARTY_HOME.items() if name.startswith(prefix)]
    if homes and layer not in homes:
        return f"only {homes[0]} includes this"
    return None


# --- Python: private modules < __init__ < the frontends and their backends


def imports(path: Path) -> Iterator[tuple[int, str, bool]]:
    """Yield (line, absolute module, whether it runs at import) of each import in a file."""
    tree = ast.parse(path.read_text())
    lazy = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) or type_checking(node)
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name, id(node) not in lazy
        elif isinstance(node, ast.ImportFrom):
            base = "tensorkey." * bool(node.level) + (node.module or "")
            names = [f"{base.rstrip('.')}.{alias.name}" for alias in node.names]
            own = base.rstrip(".") == "tensorkey"
            for name in names if own else [base]:
                yield node.lineno, name, id(node) not in lazy


def type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)


def framework_of(module: str) -> str | None:
    """Return the framework at home in a module: torch in torch.py, _torch_rows.py and so on."""
    name = re.sub(r"^_([a-z]+?)_\w+$", r"\1", module)
    return name if name in FRAMEWORKS else None


def homes_of(module: str) -> set[str]:
    """Return all frameworks at home in a module: with Keras, one that it runs on."""
    home = framework_of(module)
    if home is None:
        return set()
    below = re.match(r"_keras_([a-z]+)", module)
    homes = {home, *({below[1]} & FRAMEWORKS if below else ())}
    # TensorFlow has no frontend but Keras's; a backend is what Keras loads of another frontend.
    if home == "tensorflow" or module.endswith("_backend"):
        homes.add("keras")
    return homes | ({"jaxlib"} if "jax" in homes else set())


def python_violations(package: Path) -> list[str]:
    found = []
    for path in sorted(package.rglob("*.py")):
        own = path.stem if path.parent == package else path.relative_to(package).parts[0]
        for line, module, eager in imports(path):
            if reason := python_reason(own, module, eager):
                found.append(f"{path.relative_to(package)}:{line}: {module}  -- {reason}")
    return found


def python_reason(own: str, module: str, eager: bool) -> str | None:
    """Return what is wrong with one import in the module `own`, None if it is allowed."""
    homes = homes_of(own)
    first, _, rest = module.partition(".")
    if first in FRAMEWORKS:
        # A private module, or a frontend, may look at a tensor's framework once there is a tensor.
        lazily = not eager and (bool(homes) or own.startswith("_") and own != "__init__")
        if first in homes or lazily or (homes & BRINGS_NUMPY and first == "numpy"):
            return None
        return f"{own} imports a framework{' when it is imported' if eager else ''}"
    sibling = rest.split(".")[0] if first == "tensorkey" else ""
    other = framework_of(sibling)
    # Lazily, whoever works for several frameworks may choose a private part of the one at hand.
    chosen = not eager and (sibling.startswith("_") or "keras" in homes)
    if other is not None and other not in homes and not chosen:
        return f"{own} imports {sibling}"
    return None


# --- The tests


def test_cpp_files_look_down():
    assert cpp_violations(ROOT) == []


def test_python_modules_look_down():
    assert python_violations(ROOT / "python" / "tensorkey") == []


def test_importing_tensorkey_imports_no_framework():
    code = f"import sys, tensorkey; print(*sorted({FRAMEWORKS!r} & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd="/"
    )
    assert done.stdout.split() == []


@pytest.mark.parametrize(
    ("path", "line", "reason"),
    [
        ("src/view/walk.cc", "#include <tensorkey/key.h>", "view looks up to key"),
        ("src/view/walk.cc", '#include "key/header.h"', "view looks up to key"),
        ("src/key/key.cc", '#include "missing.h"', "no such file in the tree"),
        ("src/key/key.cc", "#include <torch/torch.h>", "key knows a framework"),
        ("src/key/key.cc", "#include <xxhash.h>", "only digest includes this"),
        ("src/key/key.cc", "#include <tensorkey/tensorkey.h>", "key looks up to frontends"),
        ("include/tensorkey/key.h", "#include <hwy/highway.h>", "somebody else's"),
        ("src/extra/extra.cc", "", "no layer is called extra"),
    ],
)
def test_a_wrong_include_is_found(tmp_path, path, line, reason):
    write(tmp_path, "include/tensorkey/key.h", "#include <array>\n")
    write(tmp_path, "include/tensorkey/tensorkey.h", "#include <tensorkey/key.h>\n")
    write(tmp_path, "src/key/header.h", "#include <tensorkey/key.h>\n")
    write(tmp_path, "src/digest/xxh3.cc", "#include <xxhash.h>\n#include <hwy/highway.h>\n")
    write(tmp_path, "python/src/core.cc", "#include <nanobind/nanobind.h>\n")
    assert cpp_violations(tmp_path) == []

    write(tmp_path, path, f"// A file.\n{line}\n")
    (violation,) = cpp_violations(tmp_path)
    assert violation.startswith(f"{path}:{2 if line else 1}: {line}")
    assert reason in violation


@pytest.mark.parametrize(
    ("module", "line", "reason"),
    [
        ("__init__", "import numpy", "__init__ imports a framework"),
        ("__init__", "def f():\n    import numpy", "__init__ imports a framework"),
        ("_frontend", "import torch.nn", "_frontend imports a framework"),
        ("_frontend", "from .torch import key", "_frontend imports torch"),
        ("_frontend", "from . import torch", "_frontend imports torch"),
        ("torch", "import numpy", "torch imports a framework"),
        ("torch", "from tensorkey.keras import key", "torch imports keras"),
        (
            "_frontend",
            "from . import _torch_backend",
            "_frontend imports _torch_backend",
        ),
        ("_torch_backend", "import tensorflow", "_torch_backend imports a framework"),
        ("keras", "from .torch import key", "keras imports torch"),
        ("_torch_rows", "import keras", "_torch_rows imports a framework"),
        ("_jax_graph", "import keras", "_jax_graph imports a framework"),
        ("_keras_jax", "import torch", "_keras_jax imports a framework"),
    ],
)
def test_a_wrong_import_is_found(tmp_path, module, line, reason):
    write(tmp_path, "__init__.py", "from ._core import Key\nfrom . import errors\n")
    write(tmp_path, "_frontend.py", "from . import _core\ndef f():\n    import numpy\n")
    write(tmp_path, "torch.py", "import torch\nfrom ._frontend import f\n")
    write(tmp_path, "_torch_backend.py", "import torch.nn\nfrom .torch import f\n")
    write(
        tmp_path, "keras.py", "import keras, numpy\ndef f():\n    from ._torch_backend import g\n"
    )
    assert python_violations(tmp_path) == []

    write(tmp_path, f"{module}.py", line + "\n")
    (violation,) = python_violations(tmp_path)
    assert violation.startswith(f"{module}.py:")
    assert reason in violation


def write(root: Path, path: str, text: str) -> None:
    target = root / path
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(text)
