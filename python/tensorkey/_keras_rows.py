"""A Keras layer as the engine sees it: arguments as Keras converts them, rows run by a backend."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import keras
from keras.src.backend.common import global_state
from keras.src.backend.common.masking import get_keras_mask

from tensorkey._backend import Bypass, Unsuited
from tensorkey._inputs import Arguments, Signature
from tensorkey._keras_layers import variables_of

if TYPE_CHECKING:
    from tensorkey.keras import CachedLayer

_UNFROZEN = (
    "weights are trainable while gradients are recorded: set layer.trainable = False, or call it "
    "outside the GradientTape"
)
_flash_attention: Any = getattr(keras.config, "is_flash_attention_enabled", lambda: None)
_SEEDS = "global_seed_generator"  # its name among Keras's globals
_SETTINGS = ("Keras", "floatx", "epsilon", "image data format", "Keras's flash attention")


def settings() -> tuple[object, ...]:
    """Return the settings of Keras that layers look at when they run."""
    config = keras.config
    return (
        keras.__version__,
        config.floatx(),
        config.epsilon(),
        config.image_data_format(),
        _flash_attention(),
    )


def mask_of(tensor: Any) -> Any:
    """Return the mask that Keras hung on a tensor."""
    return get_keras_mask(tensor)


def signature_of(layer: Any) -> inspect.Signature:
    """Return the signature of a layer's call, with `training` in it."""
    signature = inspect.signature(layer.call)
    parameters = [*signature.parameters.values()]
    if "training" in signature.parameters:
        return signature
    training = inspect.Parameter("training", inspect.Parameter.KEYWORD_ONLY, default=None)
    named = bool(parameters) and parameters[-1].kind is inspect.Parameter.VAR_KEYWORD
    parameters.insert(len(parameters) - named, training)
    return signature.replace(parameters=parameters)


class KerasSignature(Signature):
    """Takes the arguments of a layer apart, arrays made tensors of the dtype that it computes in.

    The layer's own call has done that; a call by keys of the caller's own and explain() come
    without.
    """

    def __init__(self, wrapper: CachedLayer, backend: Any, *, whole: bool) -> None:
        super().__init__(wrapper.layer.call, backend, whole=whole)
        self._wrapper = wrapper
        self._unmasked = {
            parameter.name
            for parameter in inspect.signature(wrapper.layer.call).parameters.values()
            if parameter.name.endswith("mask") and parameter.default is None
        }

    def take(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Arguments:
        """Take arguments apart.

        Raises
        ------
        tensorkey._backend.Bypass
            For an input with a mask; for what has no key, or no rows.
        """
        args = tuple(self._converted(value) for value in args)
        kwargs = {
            name: value if value is None else self._converted(value)
            for name, value in kwargs.items()
            if name != "training" and not (name in self._unmasked and _is_no_mask(value))
        }
        return super().take(args, kwargs)

    def _converted(self, value: Any) -> Any:
        convert: Any = self._convert
        return convert(value) if _is_tensor(value) else keras.tree.map_structure(convert, value)

    def _convert(self, value: Any) -> Any:
        if mask_of(value) is not None:
            raise Bypass("an input with a mask")
        wrapper = self._wrapper
        return wrapper.dtype_policy.convert_input(value, wrapper.autocast, wrapper.input_dtype)


_is_tensor: Any = keras.ops.is_tensor


def _is_no_mask(value: Any) -> bool:
    """Whether this is what Keras passes for a list of inputs without masks."""
    return isinstance(value, (list, tuple)) and all(x is None for x in keras.tree.flatten(value))


def rows_of(wrapper: CachedLayer, below: Any) -> Any:
    """Return the engine's backend: the framework below, running a Keras layer."""

    class KerasRows(below.Rows):  # type: ignore[misc]
        name = f"keras-{keras.backend.backend()}"
        environment_names = (*_SETTINGS, *below.Rows.environment_names)
        run_layer = staticmethod(below.runner(wrapper))

        def run(self, *args: Any, **kwargs: Any) -> Any:
            return _run(wrapper, self.run_layer, args, kwargs)

        def unfit_inputs(self, tensors: Sequence[Any]) -> str | None:
            reason: str | None = below.unfit_inputs(tensors)
            if reason is None and below.recording() and below.differentiated(tensors):
                return "a gradient with respect to the input is recorded"
            return reason

        def unfit_layer(self) -> str | None:
            if below.recording() and wrapper.layer.trainable_weights:
                return _UNFROZEN
            return below.unfit_layer(wrapper._fingerprint)  # type: ignore[no-any-return]

        def environment(self, tensor: Any, portable: bool) -> tuple[object, ...]:
            example = self._example() if tensor is None else tensor
            return (*settings(), *below.environment(example, portable))

        def _example(self) -> Any:
            for variable in wrapper.layer.variables:
                return variable.value
            return keras.ops.zeros(())

        def home(self) -> Any:
            return self._example().device

        def save(self, tensors: Sequence[Any]) -> Any:
            kept = []
            for part in wrapper.layer._flatten_layers():
                kept += variables_of(part)[len(part._trainable_variables) :]
            return [(variable, keras.ops.copy(variable.value)) for variable in kept]

        def restore(self, saved: Any) -> None:
            for variable, value in saved:
                variable.assign(value)

        def random_state(self) -> Any:
            generator = global_state.get_global_attribute(_SEEDS)
            drawn = generator and tuple(keras.ops.convert_to_numpy(generator.state.value).tolist())
            return (super().random_state(), drawn)

        def set_random_state(self, state: Any) -> None:
            below_state, drawn = state
            super().set_random_state(below_state)
            if drawn is None:
                global_state.set_global_attribute(_SEEDS, None)
            else:
                generator = global_state.get_global_attribute(_SEEDS)
                generator.state.assign(list(drawn))

    return KerasRows()


def _run(
    wrapper: CachedLayer, run_layer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    layer = wrapper.layer
    output = run_layer(args, kwargs)
    if any(part._losses for part in layer._flatten_layers()):
        layer._clear_losses()
        raise Unsuited("it adds losses, which a hit would leave out")
    masks = [mask_of(tensor) for tensor in keras.tree.flatten(output)]
    if any(mask is not None for mask in masks):
        first = args[0] if args else next(iter(kwargs.values()))
        known = keras.tree.flatten(layer.compute_mask(first, kwargs.get("mask")))
        if len(known) != len(masks) or not all(map(_same, known, masks)):
            raise Unsuited("its output has a mask that follows from a run alone")
    return output


def _same(one: Any, other: Any) -> bool:
    if one is None or other is None:
        return one is other
    left, right = map(keras.ops.convert_to_numpy, (one, other))
    return left.shape == right.shape and bool((left == right).all())
