"""Runs against an installed wheel in an environment that has nothing else."""

import sys
from array import array

import tensorkey as tk

FRAMEWORKS = {"numpy", "torch", "tensorflow", "keras", "jax", "jaxlib", "ml_dtypes"}


def main() -> None:
    x = array("f", [1, 2, 3, 4])
    same = array("f", x)
    assert tk.key(x) == tk.key(same)
    assert tk.key(x) != tk.key(array("d", [1, 2, 3, 4]))
    assert tk.Key.from_hex(tk.key(x).hex()) == tk.key(x)

    seen = tk.TensorKeyDict()
    square = memoryview(x).cast("B").cast("f", (2, 2))
    seen[memoryview(x)] = "cat"
    seen[square] = "dog"
    assert seen[memoryview(same)] == "cat"
    assert seen[memoryview(same).cast("B").cast("f", (2, 2))] == "dog"
    assert len(seen) == 2

    imported = FRAMEWORKS & set(sys.modules)
    assert not imported, f"importing tensorkey imported {sorted(imported)}"
    print(f"tensorkey {tk.__version__} works in an empty environment: 1 passed")


if __name__ == "__main__":
    main()
