"""Each code of the core is one class, which is also the built-in exception one would expect."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import tensorkey as tk
from tensorkey import errors


@pytest.mark.parametrize(
    ("error_class", "built_in", "failing"),
    [
        (errors.InvalidArgument, ValueError, lambda: tk.key(np.ones(1), secret=b"short")),
        (errors.Unsupported, TypeError, lambda: tk.key("text")),
        (errors.MissingKey, KeyError, lambda: tk.TensorKeyDict()[np.ones(1)]),
    ],
)
def test_table(error_class, built_in, failing):
    with pytest.raises(error_class) as caught:
        failing()
    assert isinstance(caught.value, built_in)
    assert isinstance(caught.value, errors.Error)
    assert str(caught.value).startswith("[")


def test_every_class_is_named():
    assert set(errors.__all__) == {
        name
        for name, value in vars(errors).items()
        if isinstance(value, type) and issubclass(value, errors.Error)
    }
    assert issubclass(errors.CorruptEntry, RuntimeError)
    assert issubclass(errors.InternalError, RuntimeError)


@pytest.mark.parametrize("key", ["text", [1.0], object()])
def test_a_key_that_is_no_tensor_leads_to_the_page(key):
    page = Path(__file__).parents[2] / "docs" / "unhashable.md"
    with pytest.raises(TypeError, match="docs/unhashable.md"):
        tk.TensorKeyDict()[key] = 1
    assert page.exists()
