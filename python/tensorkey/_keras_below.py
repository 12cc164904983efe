"""What a cached Keras layer asks of the backend below: the module ``tensorkey._<backend>_backend``.

Everything that differs by backend is behind this. A call is one of three sorts, asked for in this
order:

    transform() gives a reason        the layer itself runs, counted
    traced(args, kwargs) is true      traced_call() answers: it becomes part of a graph that runs
                                      later (tf.function, jax.jit); Bypass as always
    else                              eager: the engine answers
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from tensorkey._fingerprint import Fingerprint
    from tensorkey.keras import CachedLayer


class Below(Protocol):
    """A module with these names."""

    supports_jit: bool
    """Whether XLA can compile a cached layer: if not, Keras compiles no model that has one."""
    answers_stateless: bool
    """Whether calls in a StatelessScope of Keras are answered, whose weights are arguments."""
    Rows: Any
    """The engine's backend, but for how the layer is run: see tensorkey._backend.Backend."""

    def transform(self) -> str | None:
        """Return why a call now must run the layer itself, whatever its arguments."""

    def traced(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
        """Whether a call with these arguments is traced: no values are known yet."""

    def traced_call(
        self, wrapper: CachedLayer, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Return the symbolic answer of a traced call, as the layer gives its output.

        The layer may not be built yet; `training` is not among the arguments.

        Raises
        ------
        tensorkey._backend.Bypass
            The caller runs the layer itself, and counts the text once for each trace.
        """

    def runner(self, wrapper: CachedLayer) -> Callable[[tuple[Any, ...], dict[str, Any]], Any]:
        """Return what runs the layer on a chunk, in inference, given its arguments.

        If it keeps compiled programs, it has a method `clear` that drops them.
        """

    def unfit_inputs(self, inputs: Sequence[Any]) -> str | None:
        """Return why rows of these inputs cannot be looked up."""

    def unfit_layer(self, fingerprint: Fingerprint) -> str | None:
        """Return why the layer must run itself, as it is now."""

    def recording(self) -> bool:
        """Whether gradients are recorded."""

    def differentiated(self, inputs: Sequence[Any]) -> bool:
        """Whether gradients of these inputs are recorded."""

    def inference(self) -> AbstractContextManager[Any]:
        """Return a context in which no gradients are recorded."""

    def environment(self, tensor: Any, portable: bool = False) -> tuple[object, ...]:
        """Return what else the bits of an eager answer depend on, as plain values."""
