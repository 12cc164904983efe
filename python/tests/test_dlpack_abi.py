"""python/src/dlpack_abi.h against the DLPack header in the wheel of PyTorch."""

import importlib.util
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# Ours, theirs, and how their fields are called.
PAIRS: dict[str, tuple[str, dict[str, str]]] = {
    "Version": ("DLPackVersion", {"major": "major", "minor": "minor"}),
    "Device": ("DLDevice", {"device_type": "device_type", "device_id": "device_id"}),
    "DataType": ("DLDataType", {"code": "code", "bits": "bits", "lanes": "lanes"}),
    "Tensor": (
        "DLTensor",
        {n: n for n in ("data", "device", "ndim", "dtype", "shape", "strides", "byte_offset")},
    ),
    "Managed": (
        "DLManagedTensor",
        {"tensor": "dl_tensor", "context": "manager_ctx", "deleter": "deleter"},
    ),
    "ManagedVersioned": (
        "DLManagedTensorVersioned",
        {
            "version": "version",
            "context": "manager_ctx",
            "deleter": "deleter",
            "flags": "flags",
            "tensor": "dl_tensor",
        },
    ),
    "ExchangeApi": (
        "DLPackExchangeAPI",
        {
            "version": "header.version",
            "previous": "header.prev_api",
            "allocate": "managed_tensor_allocator",
            "managed_from_object": "managed_tensor_from_py_object_no_sync",
            "managed_to_object": "managed_tensor_to_py_object_no_sync",
            "tensor_from_object": "dltensor_from_py_object_no_sync",
            "current_stream": "current_work_stream",
        },
    ),
}


def test_the_abi_is_that_of_pytorchs_header(tmp_path: Path) -> None:
    """Compile our declarations beside the header in the wheel of PyTorch and compare them."""
    spec = importlib.util.find_spec("torch")
    compiler = shutil.which("g++") or shutil.which("clang++")
    if spec is None or spec.origin is None or compiler is None:
        pytest.skip("needs PyTorch's header and a C++ compiler")
    header = Path(spec.origin).parent / "include" / "ATen" / "dlpack.h"
    if not header.exists():
        pytest.skip("this PyTorch has no ATen/dlpack.h")
    ours = ROOT / "python" / "src" / "dlpack_abi.h"
    for name in PAIRS:
        assert re.search(rf"struct {name} {{", ours.read_text()), name
    checks = [
        "static_assert(our::kMajor == DLPACK_MAJOR_VERSION);",
        "static_assert(our::kMinor <= DLPACK_MINOR_VERSION);",
        "static_assert(our::kFlagPadded == DLPACK_FLAG_BITMASK_IS_SUBBYTE_TYPE_PADDED);",
        "static_assert(our::kCpu == kDLCPU && our::kCuda == kDLCUDA && our::kRocm == kDLROCM);",
        "static_assert(our::kCudaHost == kDLCUDAHost && our::kRocmHost == kDLROCMHost);",
        "static_assert(our::kInt == kDLInt && our::kUInt == kDLUInt);",
        "static_assert(our::kComplex == kDLComplex);",
    ]
    for name, (theirs, fields) in PAIRS.items():
        checks.append(f"static_assert(sizeof(our::{name}) == sizeof({theirs}));")
        for field, their in fields.items():
            offsets = f"offsetof(our::{name}, {field}) == offsetof({theirs}, {their})"
            checks.append(f"static_assert({offsets});")
            if "." not in their:
                sizes = f"sizeof(our::{name}::{field}) == sizeof({theirs}::{their})"
                checks.append(f"static_assert({sizes});")
    source = tmp_path / "abi.cc"
    lines = [f'#include "{header}"', f'#include "{ours}"']
    lines += ["namespace our = tensorkey::python::dlpack;", *checks]
    source.write_text("\n".join(lines))
    subprocess.run([compiler, "-std=c++20", "-fsyntax-only", source], check=True)
