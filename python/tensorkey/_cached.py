"""What every cached layer offers beside being called: counters, switches, keys of one's own."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

from tensorkey import _core, _explain, _import, _precompute, _tables, errors
from tensorkey._backend import Bypass
from tensorkey._cache import ActivationCache
from tensorkey._own_keys import Id, KeyedLayer, checked_ids
from tensorkey._stats import LayerStats

if TYPE_CHECKING:
    from tensorkey._frontend import Engine
    from tensorkey._options import BypassMode, Options


class Cached:
    """A cached layer of any framework; a wrapper inherits from this and from the framework."""

    _engine: Engine
    _options: Options

    @property
    def cache(self) -> ActivationCache:
        """The cache: its own, or the one that it shares."""
        return self._engine.cache

    @property
    def bypass(self) -> str:
        """When to run the layer alone: "auto", "never" or "always"."""
        return self._engine.core.mode

    @bypass.setter
    def bypass(self, mode: BypassMode) -> None:
        self._engine.core.mode = mode
        self._options = dataclasses.replace(self._options, bypass=mode)

    @property
    def stats(self) -> LayerStats:
        """A snapshot of the counters."""
        return self._engine.stats()

    def reset_stats(self) -> None:
        """Set the counters to zero; of a shared cache only this layer's."""
        self._engine.reset_stats()

    def cache_clear(self) -> None:
        """Drop the entries of this layer; those of other layers that share the cache stay."""
        self._engine.clear()

    def with_keys(self, ids: Sequence[Id]) -> KeyedLayer:
        """Return the layer for one batch under keys of the caller's own, one a row.

        Parameters
        ----------
        ids
            File names, dataset indices and the like: str, bytes or integers. That an id means one
            input, and always the same, is the caller's word: ``stats.assumptions`` says so, and
            ``verify=`` checks it now and then.

        Returns
        -------
        KeyedLayer
            Called with the arguments of the layer, or with a function from positions to the inputs
            of the rows there, which is called for missing rows alone.

        Raises
        ------
        tensorkey.errors.Unsupported
            For an id of another type, such as bool; for a layer with ``trim=``.

        Examples
        --------
        >>> import torch
        >>> from tensorkey.torch import CachedLayer
        >>> files = {"a.png": torch.zeros(8), "b.png": torch.ones(8)}
        >>> encoder = CachedLayer(torch.nn.Linear(8, 2).requires_grad_(False))
        >>> names = ["a.png", "b.png", "a.png"]
        >>> load = lambda missing: torch.stack([files[names[i]] for i in missing])
        >>> encoder.with_keys(names)(load).shape
        torch.Size([3, 2])
        >>> encoder.missing(names + ["c.png"])
        [3]
        """
        if self._options.trim is not None:
            raise errors.Unsupported(
                "[with_keys] the layer has trim=, which makes keys of a row's content; wrap it "
                "without trim= for keys of your own"
            )
        return KeyedLayer(self, checked_ids(ids))

    def missing(self, ids: Sequence[Id]) -> list[int]:
        """Return the positions of ids whose rows would have to be run; of equal ones the first.

        Under the weights of now, and for calls whose arguments are tensors with rows alone. Nothing
        is run or counted. All positions, if the call would run without the cache.
        """
        checked = checked_ids(ids)
        if not checked or self._standing_aside() is not None:
            return list(range(len(checked)))
        try:
            return self._engine.missing(checked)
        except Bypass:
            return list(range(len(checked)))

    def explain(self, *args: Any, **kwargs: Any) -> _explain.Explanation:
        """Say for each row of a batch whether it would be a hit, and if not, why not.

        Parameters
        ----------
        *args, **kwargs
            As for the layer. Nothing is run, stored or counted.

        Returns
        -------
        Explanation
            A list of one ``(hit, reason)`` for each row; printed, a table of the reasons.

        Examples
        --------
        >>> import torch
        >>> from tensorkey.torch import CachedLayer
        >>> encoder = CachedLayer(torch.nn.Linear(4, 2).requires_grad_(False))
        >>> x = torch.eye(4)
        >>> _ = encoder(x[:2])
        >>> print(encoder.explain(x))
        2 rows: hit
        2 rows: never seen
        """
        return _explain.explain(self._engine, self._standing_aside(), args, kwargs)

    def precompute(
        self,
        batches: Iterable[Any],
        *,
        keys: bool = False,
        progress: bool | None = None,
    ) -> LayerStats:
        """Fill the cache with everything that a loader yields.

        What is there already is not run again, so a fill into a directory that was killed goes on
        where it was. No gradients are recorded, and ``bypass="auto"`` does not step aside.

        Parameters
        ----------
        batches
            Of inputs: a tuple or list is arguments by position, a mapping arguments by name,
            anything else one argument; with `keys`, pairs of ids and such inputs, or functions as
            for :meth:`with_keys`.
        keys
            Whether batches come with keys of the caller's own.
        progress
            Whether to show a bar with rows a second, hits, the time left and the bytes that it will
            come to; None: on a terminal, with the extra ``cli`` installed.

        Returns
        -------
        LayerStats
            What this fill counted, flushed to the disk if there is one.

        Examples
        --------
        >>> import torch
        >>> from tensorkey.torch import CachedLayer
        >>> encoder = CachedLayer(torch.nn.Linear(4, 2).requires_grad_(False))
        >>> encoder.precompute(torch.eye(4).split(2)).misses
        4
        """
        return _precompute.precompute(self, batches, keys=keys, progress=progress)

    def to_table(self, keys: Sequence[Id]) -> Any:
        """Return the outputs of rows with these keys of the caller's own, for plain indexing.

        Parameters
        ----------
        keys
            As for :meth:`with_keys`.

        Returns
        -------
        The layer's output for all of them as one batch, in their order.

        Raises
        ------
        tensorkey.errors.MissingKey
            Some are not there; the message names the first ones.

        Examples
        --------
        >>> import torch
        >>> from tensorkey.torch import CachedLayer
        >>> encoder = CachedLayer(torch.nn.Linear(4, 2).requires_grad_(False))
        >>> _ = encoder.with_keys([10, 11])(torch.eye(4)[:2])
        >>> encoder.to_table([11, 10, 11]).shape
        torch.Size([3, 2])
        """
        return _tables.to_table(self._engine, checked_ids(keys))

    def to_safetensors(self, path: str | os.PathLike[str], keys: Sequence[Id]) -> int:
        """Write the outputs of rows with these keys into a safetensors file.

        Parameters
        ----------
        path
            The file; made anew.
        keys
            As for :meth:`with_keys`. A tensor has the name of its key, followed by "/" and its
            number in the output if that is more than one tensor. What is the same for every row is
            left out.

        Returns
        -------
        int
            The number of tensors.

        Raises
        ------
        tensorkey.errors.MissingKey
            Some are not there.
        tensorkey.errors.InvalidArgument
            Two keys would have one name, such as 1 and "1".
        tensorkey.errors.Unsupported
            The package safetensors is not installed.
        """
        return _tables.to_safetensors(self._engine, path, checked_ids(keys))

    def import_entries(self, path: str | os.PathLike[str]) -> int:
        """Take answers that were computed elsewhere: a file of arrays by name.

        The name of an array is the key of the caller's own under which :meth:`with_keys` finds it,
        the array the layer's output for that row, without the batch dimension. That they belong to
        this layer with its present weights is the caller's word; ``stats.assumptions`` says so. An
        output that is more than the tensor, such as a ModelOutput, is known once the layer was
        called: call it before. They are kept for the chunks in which the layer runs as far as is
        known, so a layer that was not called yet is taken to run in chunks of 32.

        Parameters
        ----------
        path
            A ``.npz`` or ``.safetensors`` file. Nothing in it is unpickled.

        Returns
        -------
        int
            The number of entries taken; those whose key is there already are not.

        Raises
        ------
        tensorkey.errors.InvalidArgument
            For another kind of file.
        tensorkey.errors.CorruptEntry
            The file cannot be read to its end, or holds pickled objects; what was read is kept.
        tensorkey.errors.Unsupported
            For a dtype that is none of the framework's; if the layer's outputs are several tensors.

        Examples
        --------
        >>> import os, tempfile, numpy, torch
        >>> from tensorkey.torch import CachedLayer
        >>> vae = CachedLayer(torch.nn.Linear(4, 2).requires_grad_(False))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = os.path.join(folder, "latents.npz")
        ...     numpy.savez(path, **{"a.png": numpy.zeros(2, "f"), "b.png": numpy.ones(2, "f")})
        ...     vae.import_entries(path)
        2
        >>> vae.to_table(["b.png"])
        tensor([[1., 1.]])
        """
        return _import.import_entries(self._engine, path)

    def _describe(self) -> str:
        """Return what a repr says of the cache."""
        stats = self.stats
        chunk = self._options.chunk if stats.chunk is None else stats.chunk
        return f"cache={self.cache!r}, chunk={chunk!r}, probe={stats.probe!r}"

    def _standing_aside(self) -> str | None:
        """Return why a call now would run the layer alone, whatever its arguments; counts nothing.

        While bypass="auto" steps aside a few calls go through the cache all the same.
        """
        core = self._engine.core
        if _core.is_disabled():
            return "tensorkey.disabled(), or TENSORKEY_DISABLE is set"
        if core.mode == "always":
            return "bypass='always'"
        reason = self._reason_to_bypass()
        if reason is None and core.mode == "auto":
            decision = str(core.stats()["decision"])
            reason = f"bypass='auto' {decision}" if decision.startswith("stepped aside") else None
        return reason

    def _inference(self) -> AbstractContextManager[Any]:
        """Return a context in which no gradients are recorded."""
        return nullcontext()

    def _run_alone(self, args: tuple[Any, ...], kwargs: dict[str, Any], reason: str) -> Any:
        """Run the layer without the cache, and count why."""
        self._engine.core.bypass(reason)
        return self._run_inner(args, kwargs)

    def _alone(self) -> Any:
        """Return the layer as a call of it without the cache runs."""
        raise NotImplementedError

    def _twin(self, **options: Any) -> Any:
        """Return a wrapper of the same layer with other options and a cache of its own."""
        raise NotImplementedError

    def _run_inner(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run the layer as if there were no cache."""
        raise NotImplementedError

    def _reason_to_bypass(self) -> str | None:
        """Return why a call would not even look at its arguments now; counts nothing."""
        raise NotImplementedError
