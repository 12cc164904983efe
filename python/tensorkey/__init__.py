"""Tensors as dictionary keys, done right, and the activation cache over them.

Importing this package imports no framework. Cached layers live in ``tensorkey.torch`` and
``tensorkey.keras``.

Examples
--------
>>> import array
>>> import tensorkey as tk
>>> x = array.array("f", [1.0, 2.0])
>>> seen = tk.TensorKeyDict()
>>> seen[x] = "cat"
>>> seen[array.array("f", [1.0, 2.0])]
'cat'
"""

from collections.abc import Sequence

from tensorkey import errors as errors
from tensorkey._cache import ActivationCache as ActivationCache
from tensorkey._check import check as check
from tensorkey._core import Entry as Entry
from tensorkey._core import Key as Key
from tensorkey._core import Keys as Keys
from tensorkey._core import __version__ as __version__
from tensorkey._core import describe as describe
from tensorkey._core import key as key
from tensorkey._core import row_keys as row_keys
from tensorkey._core import structure_key as structure_key
from tensorkey._core import tuple_key as tuple_key
from tensorkey._core import tuple_row_keys as tuple_row_keys
from tensorkey._disabled import disabled as disabled
from tensorkey._memoize import memoize as memoize
from tensorkey._method import cached_method as cached_method
from tensorkey._simulate import simulate as simulate
from tensorkey._unique import unique as unique
from tensorkey.mapping import TensorKeyDict as TensorKeyDict
from tensorkey.mapping import TensorKeySet as TensorKeySet

Sequence.register(Keys)
