"""Arguments of a layer: what makes the keys of rows, what makes the scope, and the call again.

    signature = Signature(layer.forward, framework)
    arguments = signature.take(args, kwargs)      rows, tensors, paths, form
    arguments.call(layer, chunk)                  the same call on other rows

The batch size is the first dim of the first tensor of rank 1 or more, in the order of the
parameters. Tensors with that first dim hold rows; of all others, and of everything else, the
contents are in the form. The form says, in the canonical encoding,

    t  (how it was spelled, declared, positional, named)
       spelled      N, or a tuple of the number of positional arguments and the keywords, where a
                    decorator lies around the function that has the signature
       declared     name and value in turn, without plain values that are the declared default
       positional   the values that *args takes; named: name and value of what **kwargs takes

and tensors with rows by class, dtype and device (_input_encoder.py).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from struct import pack
from typing import Any

from tensorkey._backend import Bypass
from tensorkey._binding import Binding, signature_of
from tensorkey._calls import NoKey
from tensorkey._encoding import item, plain, sequence, text, version_of
from tensorkey._input_encoder import InputEncoder
from tensorkey._nests import Framework, rebuilt

_MAX_PLANS = 256
_MAX_DEPTH = 32
_HASHED = frozenset({type(None), bool, int, str})


class Arguments:
    """The arguments of one call. They are borrowed: not copied until ``call``."""

    __slots__ = ("_args", "_kwargs", "_plan", "rows", "tensors")

    rows: int
    """The batch size, at least 1."""
    tensors: list[Any]
    """Those with a row for each of the batch, in the order of the parameters."""

    def __init__(
        self,
        rows: int,
        tensors: list[Any],
        plan: _Plan,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> None:
        self.rows = rows
        self.tensors = tensors
        self._plan = plan
        self._args = args
        self._kwargs = kwargs

    @property
    def paths(self) -> list[str]:
        """Where the tensors are. Not to be changed: calls of one sort share the list."""
        return self._plan.paths

    @property
    def form(self) -> bytes:
        """Encoding of everything else; calls of one sort share the object."""
        return self._plan.form

    @property
    def bare(self) -> bool:
        """Whether there is nothing but tensors with rows, each an argument."""
        return self._plan.bare

    def replaced(self, tensors: list[Any], rows: int) -> Arguments:
        """Return the same arguments with other tensors in the places of ``tensors``."""

        def keep(*args: Any, **kwargs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
            return args, kwargs

        args, kwargs = self.call(keep, tensors)
        return Arguments(rows, tensors, self._plan, args, kwargs)

    @property
    def assumed(self) -> Sequence[str]:
        """What of the arguments could not be read, and is assumed not to matter."""
        return self._plan.assumed

    def call(self, run: Callable[..., Any], tensors: Sequence[Any]) -> Any:
        """Call a function with other tensors in the places of ``tensors``, nests made anew."""
        rows = frozenset(map(id, self.tensors))
        rest = iter(tensors)
        args, kwargs = [*self._args], dict(self._kwargs)
        for place in self._plan.places:
            held: Any = args if isinstance(place, int) else kwargs
            held[place] = rebuilt(held[place], rows, rest)
        return run(*args, **kwargs)


class _Plan:
    """What calls have in common whose arguments differ in the contents of tensors only."""

    __slots__ = ("assumed", "bare", "form", "lengths", "order", "paths", "places")

    def __init__(
        self,
        encoder: InputEncoder,
        form: bytes,
        bare: bool,
        places: list[int | str],
        order: list[int] | None,
    ) -> None:
        self.paths = encoder.paths
        self.form = form
        self.bare = bare
        self.assumed = encoder.assumed
        self.lengths = frozenset(encoder.lengths)
        self.places = places
        self.order = order
        """Of the row tensors, if they are not passed in the order of the parameters."""


class Signature:
    """Takes the arguments of one function apart. Thread-safe.

    Parameters
    ----------
    method
        The layer's function, bound: what has no signature takes ``*args`` and ``**kwargs``.
    framework
        Of the layer.
    whole
        Whether an input is one row in all: every tensor is in ``tensors``, and ``rows`` is 1.

    Examples
    --------
    >>> import numpy as np
    >>> class Numpy:
    ...     is_tensor = staticmethod(lambda value: isinstance(value, np.ndarray))
    ...     rows = staticmethod(lambda tensor: len(tensor) if tensor.ndim else None)
    >>> signature = Signature(lambda x, mask=None, scale=1.0: x, Numpy())
    >>> x, mask = np.ones((4, 3)), np.ones((4, 1))
    >>> arguments = signature.take((x,), {"mask": mask})
    >>> arguments.rows, arguments.paths
    (4, ['x', 'mask'])
    >>> arguments.form == signature.take((x, mask, 1.0), {}).form
    True
    >>> arguments.call(lambda x, mask: x.shape, [x[:2], mask[:2]])
    (2, 3)
    """

    def __init__(
        self, method: Callable[..., Any], framework: Framework, *, whole: bool = False
    ) -> None:
        self._framework = framework
        self._rows = framework.rows
        self._whole = whole
        self._signature, self._wrapped = signature_of(method)
        self._bindings: dict[tuple[int, tuple[str, ...]], Binding] = {}
        self._plans: dict[tuple[Any, ...], _Plan] = {}
        self._tensors: set[type] = set()
        """Classes whose instances are tensors."""

    def take(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Arguments:
        """Take arguments apart.

        Raises
        ------
        tensorkey._backend.Bypass
            For what has no key, or no rows.
        """
        known = self._tensors
        if len(args) == 1 and not kwargs and type(args[0]) in known:
            [tensor] = args
            plan = self._plans.get((1, type(tensor), tensor.dtype, tensor.device))
            rows = 1 if self._whole else self._rows(tensor)
            if plan is not None and rows:
                return Arguments(rows, [tensor], plan, args, kwargs)
        tensors: list[Any] = []
        key: list[Any] = [len(args)]
        for value in args:
            if not self._trace(value, key, tensors, 0):
                return self._take(args, kwargs, None)
        for name, value in kwargs.items():
            kind = type(value)
            if kind in known:
                tensors.append(value)
                key += (name, kind, value.dtype, value.device)
                continue
            key.append(name)
            if not self._trace(value, key, tensors, 0):
                return self._take(args, kwargs, None)
        traced = tuple(key)
        plan = self._plans.get(traced)
        if plan is None:
            return self._take(args, kwargs, traced)
        rows = self._common_rows(tensors)
        if not rows or (rows in plan.lengths and rows > 1):
            return self._take(args, kwargs, None)
        if plan.order is not None:
            tensors = [tensors[i] for i in plan.order]
        return Arguments(rows, tensors, plan, args, kwargs)

    def _common_rows(self, tensors: list[Any]) -> int | None:
        """Return the batch size if every tensor has it."""
        if self._whole:
            return 1
        rows = [*map(self._rows, tensors)]
        return rows[0] if rows and rows.count(rows[0]) == len(rows) else None

    def _trace(self, value: Any, key: list[Any], tensors: list[Any], depth: int) -> bool:
        """Note a value in the key of a plan; False if that cannot say all of it."""
        kind = type(value)
        if kind in self._tensors:
            tensors.append(value)
            key += (kind, value.dtype, value.device)
        elif kind in _HASHED:
            key += (kind, value)
        elif kind is float:
            key += (kind, pack("<d", value))
        elif (kind is tuple or kind is list) and depth < _MAX_DEPTH:
            key += (kind, len(value))
            for part in value:
                if not self._trace(part, key, tensors, depth + 1):
                    return False
        elif kind is dict and depth < _MAX_DEPTH:
            key += (kind, len(value))
            for name, part in value.items():
                if type(name) is not str:
                    return False
                key.append(name)
                if not self._trace(part, key, tensors, depth + 1):
                    return False
        else:
            return False
        return True

    def _take(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], traced: tuple[Any, ...] | None
    ) -> Arguments:
        binding = self._binding(len(args), tuple(kwargs))
        encoder = InputEncoder(self._framework, whole=self._whole)
        try:
            form, bare = self._encoded(binding, encoder, args, kwargs)
            encoder.check()
        except NoKey as reason:
            raise Bypass(str(reason)) from None
        rows = 1 if self._whole else encoder.rows
        if rows is None or not encoder.tensors:
            raise Bypass("no tensor with rows among the arguments")
        if not rows:
            raise Bypass("a batch of 0 rows")
        plan = _Plan(encoder, form, bare, binding.places, None)
        self._tensors.update(type(x) for x in encoder.tensors if hasattr(x, "device"))
        if traced is not None and not encoder.others:
            plan.order = self._order(binding, args, kwargs)
            if len(self._plans) >= _MAX_PLANS:
                self._plans.clear()
            self._plans[traced] = plan
        return Arguments(rows, encoder.tensors, plan, args, kwargs)

    def _binding(self, count: int, names: tuple[str, ...]) -> Binding:
        binding = self._bindings.get((count, names))
        if binding is None:
            binding = Binding(self._signature, count, names)
            if len(self._bindings) >= _MAX_PLANS:
                self._bindings.clear()
            self._bindings[count, names] = binding
        return binding

    def _encoded(
        self,
        binding: Binding,
        encoder: InputEncoder,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> tuple[bytes, bool]:
        declared, named = [], []
        for key, at, default in binding.declared:
            encoded = encoder.encode(args[at] if isinstance(at, int) else kwargs[at], key)
            if encoded != default:
                declared += [text(key), encoded]
        positional = [encoder.encode(args[at], path) for path, at in binding.positional]
        for key, path, own in binding.named:
            named += [text(key), encoder.encode(kwargs[own], path)]
        spelled = plain((len(args), *kwargs)) if self._wrapped else item(b"N", b"")
        parts = [sequence(b"d", declared), sequence(b"t", positional), sequence(b"d", named)]
        # Functions among the arguments count with the versions of what they name.
        versions = [text(root) + text(version_of(root)) for root in sorted(encoder.roots)]
        values = [*declared[1::2], *positional, *named[1::2]]
        bare = all(value.startswith(b"r") for value in values)
        return sequence(b"t", [spelled, *parts, *versions]), bare

    def _order(
        self, binding: Binding, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> list[int] | None:
        """Return where the tensors of each place in parameter order are among those passed."""
        spans: dict[int | str, range] = {}
        tensors: list[Any] = []
        passed: list[tuple[int | str, Any]] = [*enumerate(args), *kwargs.items()]
        for at, value in passed:
            before = len(tensors)
            self._trace(value, [], tensors, 0)
            spans[at] = range(before, len(tensors))
        order = [i for at in binding.places for i in spans[at]]
        return None if order == sorted(order) else order
