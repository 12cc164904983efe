"""Outputs of a layer: taken apart into tensors and a form, put together again from both.

    parts = pack(output, framework, rows=32, like=x)       parts.leaves, parts.paths, parts.form
    form = output_form(parts.form)                         read once for all calls
    form.unpack(tensors)                                   the output again

A form is a description as _results.py writes it. It is equal for all runs that differ in the
contents of their rows only, if the output is. A leaf's note says where it lies and in which order:
the device is empty where it is that of the input, so that a form holds on every device of a kind.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from tensorkey._backend import Bypass, Unsuited
from tensorkey._nests import Framework
from tensorkey._result_builders import Builder
from tensorkey._result_tensors import NoResult, Note, device_of, reordered
from tensorkey._results import Packed


class OutputParts(NamedTuple):
    """An output taken apart. The leaves are the layer's own tensors, not copies."""

    leaves: list[Any]
    paths: list[str]
    form: bytes


def pack(
    output: Any, framework: Framework, *, rows: int | None = None, like: Any = None
) -> OutputParts:
    """Take an output apart.

    Parameters
    ----------
    output
        Any nest of the framework's tensors and plain values.
    framework
        Of the layer.
    rows
        The batch size of the run: the place of the rows in a leaf's memory counts, be it one row.
    like
        An input tensor: its device is not named.

    Raises
    ------
    tensorkey._backend.Unsuited
        For what cannot be kept.
    """
    try:
        packed = Packed(output, rows, () if like is None else device_of(like))
    except NoResult as reason:
        raise Unsuited(f"its output cannot be kept: {reason}") from None
    paths = [path or "output" for path in packed.paths]
    for leaf, path in zip(packed.originals(), paths, strict=True):
        if not framework.is_tensor(leaf):
            kind = type(leaf)
            raise Unsuited(
                f"its output cannot be kept: {path} is a {kind.__module__}.{kind.__qualname__}, "
                "no tensor of the layer's framework"
            )
    if not packed.tensors:
        raise Unsuited("its output holds no tensor")
    return OutputParts(packed.tensors, paths, packed.description)


class OutputForm:
    """How outputs of one form are put together. Thread-safe.

    Raises
    ------
    tensorkey._backend.Bypass
        If the form names a class that no loaded module has.
    """

    unpack: Callable[[Sequence[Any]], Any]
    """Make an output of its leaves: tensors in C order on the right devices, which become part of
    it. Nothing that can be changed in place is shared by two outputs."""

    def __init__(self, form: bytes) -> None:
        self._form = form
        self._builder = self._read()
        self.leaves: list[Note] = self._builder.notes
        self._orders = [
            (i, noted[2])
            for i, noted in enumerate(self.leaves)
            if noted[0] in ("torch", "numpy") and noted[2]
        ]
        self.is_bare = form[:1] == b"x" and not self._orders and self.leaves[0][1] == ""
        """Whether an output is its only leaf, on the device of the inputs."""
        plain = self._builder.is_plain and not self._orders
        self.unpack = self._builder.build if plain else self._unpack

    def _read(self) -> Builder:
        try:
            return Builder(self._form)
        except Exception as error:
            raise Bypass(_GONE) from error

    def _unpack(self, tensors: Sequence[Any]) -> Any:
        builder = self._builder
        if not builder.is_current():  # a class was defined anew
            builder = self._builder = self._read()
        if self._orders:
            tensors = list(tensors)
            for i, order in self._orders:
                tensors[i] = reordered(tensors[i], order)
        try:
            return builder.build(tensors)
        except Exception as error:
            raise Bypass(_GONE) from error


_GONE = "a stored output could not be put together: its class is not there or is another one now"


@functools.lru_cache(maxsize=256)
def output_form(form: bytes) -> OutputForm:
    """Return what puts outputs of this form together."""
    return OutputForm(form)
