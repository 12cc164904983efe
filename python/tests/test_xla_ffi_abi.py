"""python/src/xla_ffi_abi.h against the header of XLA's FFI in the wheel of jaxlib."""

import importlib.util
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# Ours, theirs, and how their fields are called. Those marked * may be longer than ours.
PAIRS: dict[str, tuple[str, dict[str, str]]] = {
    "Extension": (
        "XLA_FFI_Extension_Base",
        {"struct_size": "struct_size", "type": "type", "next": "next"},
    ),
    "ApiVersion": (
        "XLA_FFI_Api_Version",
        {
            "struct_size": "struct_size",
            "extensions": "extension_start",
            "major": "major_version",
            "minor": "minor_version",
        },
    ),
    "FailureArgs": (
        "XLA_FFI_Error_Create_Args",
        {
            "struct_size": "struct_size",
            "extensions": "extension_start",
            "message": "message",
            "code": "errc",
        },
    ),
    "Buffer": (
        "XLA_FFI_Buffer",
        {
            "struct_size": "struct_size",
            "extensions": "extension_start",
            "dtype": "dtype",
            "data": "data",
            "rank": "rank",
            "dims": "dims",
        },
    ),
    "ByteSpan": ("XLA_FFI_ByteSpan", {"data": "ptr", "size": "len"}),
    "Scalar": ("XLA_FFI_Scalar", {"dtype": "dtype", "value": "value"}),
    "Args": ("XLA_FFI_Args", {n: n for n in ("struct_size", "size", "types", "args")}),
    "Rets": ("XLA_FFI_Rets", {n: n for n in ("struct_size", "size", "types", "rets")}),
    "Attrs": ("XLA_FFI_Attrs", {n: n for n in ("struct_size", "size", "types", "names", "attrs")}),
    "Api*": (
        "XLA_FFI_Api",
        {
            "struct_size": "struct_size",
            "version": "api_version",
            "internal": "internal_api",
            "create_failure": "XLA_FFI_Error_Create",
        },
    ),
    "CallFrame*": (
        "XLA_FFI_CallFrame",
        {
            "struct_size": "struct_size",
            "extensions": "extension_start",
            "api": "api",
            "context": "ctx",
            "stage": "stage",
            "args": "args",
            "rets": "rets",
            "attrs": "attrs",
        },
    ),
    "Metadata*": (
        "XLA_FFI_Metadata",
        {
            "struct_size": "struct_size",
            "version": "api_version",
            "traits": "traits",
            "state_type": "state_type_id",
        },
    ),
    "MetadataExtension": (
        "XLA_FFI_Metadata_Extension",
        {"base": "extension_base", "metadata": "metadata"},
    ),
}

NUMBERS = {
    "ExtensionType::kMetadata": "XLA_FFI_Extension_Metadata",
    "FailureCode::kInvalidArgument": "XLA_FFI_Error_Code_INVALID_ARGUMENT",
    "FailureCode::kResourceExhausted": "XLA_FFI_Error_Code_RESOURCE_EXHAUSTED",
    "FailureCode::kUnimplemented": "XLA_FFI_Error_Code_UNIMPLEMENTED",
    "FailureCode::kInternal": "XLA_FFI_Error_Code_INTERNAL",
    "ArgType::kBuffer": "XLA_FFI_ArgType_BUFFER",
    "RetType::kBuffer": "XLA_FFI_RetType_BUFFER",
    "AttrType::kScalar": "XLA_FFI_AttrType_SCALAR",
    "Stage::kExecute": "XLA_FFI_ExecutionStage_EXECUTE",
}

# Our names of element types, where theirs are not the same in capitals.
ELEMENTS = {
    "Bool": "PRED",
    "Int": "S",
    "UInt": "U",
    "BFloat": "BF",
    "Float": "F",
    "Complex": "C",
}


def element(ours: str) -> str:
    """What XLA calls an element type of ours: Int8 is S8."""
    match = re.fullmatch(r"(Bool|Int|UInt|BFloat|Float|Complex)(\w*)", ours)
    assert match, ours
    return f"XLA_FFI_DataType_{ELEMENTS[match[1]]}{match[2]}"


def test_the_abi_is_that_of_jaxlibs_header(tmp_path: Path) -> None:
    """Compile our declarations beside the header in the wheel of jaxlib and compare them."""
    spec = importlib.util.find_spec("jaxlib")
    compiler = shutil.which("g++") or shutil.which("clang++")
    if spec is None or spec.origin is None or compiler is None:
        pytest.skip("needs jaxlib's header and a C++ compiler")
    header = Path(spec.origin).parent / "include" / "xla" / "ffi" / "api" / "c_api.h"
    if not header.exists():
        pytest.skip("this jaxlib has no xla/ffi/api/c_api.h")
    ours = ROOT / "python" / "src" / "xla_ffi_abi.h"
    text = ours.read_text()
    structs = set(re.findall(r"^struct (\w+) {", text, re.MULTILINE))
    assert structs == {name.rstrip("*") for name in PAIRS}
    elements = re.findall(r"enum class ElementType : std::uint32_t {(.*?)}", text, re.DOTALL)[0]
    numbers = NUMBERS | {
        f"ElementType::k{name}": element(name) for name in re.findall(r"k(\w+) =", elements)
    }
    assert len(numbers) == len(re.findall(r"\bk\w+ = \d+[,;}\s]", text)) - 3  # versions
    checks = [
        "static_assert(our::kMajor == XLA_FFI_API_MAJOR);",
        "static_assert(our::kOldestMinor <= XLA_FFI_API_MINOR);",
    ]
    for name, theirs in numbers.items():
        checks.append(f"static_assert(static_cast<unsigned>(our::{name}) == {theirs});")
    if "state_type_id" not in header.read_text():  # before 0.3
        del PAIRS["Metadata*"]
    for name, (theirs, fields) in PAIRS.items():
        longer, name = name.endswith("*"), name.rstrip("*")
        relation = "<=" if longer else "=="
        checks.append(f"static_assert(sizeof(our::{name}) {relation} sizeof({theirs}));")
        for field, their in fields.items():
            offsets = f"offsetof(our::{name}, {field}) == offsetof({theirs}, {their})"
            sizes = f"sizeof(our::{name}::{field}) == sizeof({theirs}::{their})"
            checks += [f"static_assert({offsets});", f"static_assert({sizes});"]
    source = tmp_path / "abi.cc"
    lines = [f'#include "{header}"', f'#include "{ours}"']
    lines += ["namespace our = tensorkey::python::xla;", *checks]
    source.write_text("\n".join(lines))
    subprocess.run([compiler, "-std=c++20", "-fsyntax-only", source], check=True)
