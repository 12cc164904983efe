"""JAX arrays as keys: concrete, deleted, traced, sharded."""

import subprocess
import sys

import pytest

import tensorkey as tk
from tensorkey.errors import Unsupported

jax = pytest.importorskip("jax")
np = pytest.importorskip("numpy")
jnp = jax.numpy

TRACED = "has no value while the model is being traced; wrap the layer in CachedLayer"


def test_arrays_equal_their_numpy_copies() -> None:
    x = jnp.arange(24.0).reshape(2, 3, 4)
    for view in (x, x.T, x[:, ::-1], x[1:1], x[0, 0, 0]):
        assert tk.key(view) == tk.key(np.array(view))
    half = x.astype("bfloat16")
    assert tk.key(half) == tk.key(np.array(half))
    assert tk.key(half[0, 0, 0]) == tk.key(np.array(half)[0, 0, 0])


def test_int4_by_value() -> None:
    ml_dtypes = pytest.importorskip("ml_dtypes")
    assert tk.key(jnp.array([1, -2, 7], "int4")) == tk.key(np.array([1, -2, 7], ml_dtypes.int4))


def test_deleted_arrays() -> None:
    x = jnp.ones(3) + 1
    x.delete()
    with pytest.raises(Unsupported, match="deleted or donated"):
        tk.key(x)


def test_prng_keys() -> None:
    x = jax.random.key(0)
    with pytest.raises(Unsupported, match=r"jax\.random\.key_data"):
        tk.key(x)
    tk.key(jax.random.key_data(x))


def test_tracers() -> None:
    def refused(x: object) -> object:
        for function in (tk.key, tk.structure_key, tk.describe):
            with pytest.raises(Unsupported, match=TRACED):
                function(x)
        return jnp.sum(x)

    x = jnp.ones((2, 3))
    jax.jit(refused)(x)
    jax.vmap(refused)(x)
    jax.grad(refused)(x)
    jax.make_jaxpr(refused)(x)


def test_weak_types_are_not_content() -> None:
    assert tk.key(jnp.asarray(1.0)) == tk.key(jnp.float32(1.0))


def test_structure() -> None:
    x = jnp.ones((4, 6))
    assert tk.structure_key(x) == tk.structure_key(np.zeros((4, 6), "float32"))
    assert tk.structure_key(x.T) != tk.structure_key(x)


SHARDED = """
import jax, numpy as np, tensorkey as tk
from jax.sharding import Mesh, NamedSharding, PartitionSpec
mesh = Mesh(np.array(jax.devices()), ("a",))
x = np.arange(8, dtype="float32")
for spec in (PartitionSpec("a"), PartitionSpec()):
    y = jax.device_put(x, NamedSharding(mesh, spec))
    assert tk.key(y) == tk.key(x)
    assert tk.describe(y).host_copy
    assert tk.structure_key(y) != tk.structure_key(x)
assert tk.key(jax.device_put(x, jax.devices()[2])) == tk.key(x)
"""


def test_arrays_on_several_devices() -> None:
    import os

    flag = "--xla_force_host_platform_device_count=4"
    environment = {**os.environ, "XLA_FLAGS": flag, "JAX_PLATFORMS": "cpu"}
    environment["PYTHONPATH"] = os.pathsep.join(sys.path)
    subprocess.run([sys.executable, "-c", SHARDED], check=True, env=environment)
