"""The fingerprint of a function of JAX, with the parameters that a call passes."""

from __future__ import annotations

import dataclasses
import functools
import threading
import types
from collections.abc import Callable
from typing import Any

from tensorkey._fingerprint import Fingerprint, State
from tensorkey._jax_functions import JaxFunctions, Root
from tensorkey._jax_parameters import Digests, Parameters, joined
from tensorkey._options import Options


class JaxFingerprint(Fingerprint):
    """What a function is, call by call.

    Arrays cannot be written to, so a guard sees all but writes to arrays of NumPy that JAX took
    over as they were. Parameters that are arguments are read by every call.
    """

    def __init__(self, function: Callable[..., Any], options: Options) -> None:
        self.root = Root(function)
        state = options.state
        if isinstance(state, (types.FunctionType, types.MethodType)):
            state = functools.partial(state)  # called, not read
        super().__init__(
            JaxFunctions(self.root),
            lambda: self.root,
            options.fingerprint,
            options.ignore,
            state,
        )
        self._digests = Digests()
        self._call = threading.local()

    @property
    def given(self) -> Parameters | None:
        """The parameters of this thread's call."""
        return getattr(self._call, "given", None)

    @given.setter
    def given(self, given: Parameters | None) -> None:
        self._call.given = given

    @property
    def function(self) -> tuple[bytes, bytes]:
        """The state of the function as this thread's call found it, its parameters left out."""
        return self._call.function  # type: ignore[no-any-return]

    def check(self) -> State:
        """Look at the function and at the parameters, once a call."""
        state = super().check()
        self._call.function = (state.structure, state.weights)
        given = self.given
        if given is None or self.mode == "manual":
            return state
        return dataclasses.replace(
            state,
            structure=joined(state.structure, given.structure),
            weights=joined(state.weights, self._digests.digest(given.names, given.tensors)),
        )
