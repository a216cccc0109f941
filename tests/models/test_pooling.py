import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bdjax.models import pooling


def _lax_pool(x):
  return jax.lax.reduce_window(
    x, -jnp.inf, jax.lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID"
  )


@pytest.mark.parametrize("shape", [(2, 8, 8, 3), (2, 7, 9, 3)])
def test_max_pool_equals_lax_in_value_and_gradient(shape):
  rng = np.random.default_rng(0)
  x = rng.standard_normal(shape, np.float32)
  g = rng.standard_normal((2, shape[1] // 2, shape[2] // 2, 3), np.float32)

  @functools.partial(jax.jit, static_argnums=0)
  def value_and_gradient(function, x, g):
    value, pull = jax.vjp(function, x)
    return value, *pull(g)

  want = value_and_gradient(_lax_pool, x, g)
  got = value_and_gradient(pooling.max_pool, x, g)
  np.testing.assert_array_equal(got[0], want[0])
  np.testing.assert_array_equal(got[1], want[1])


def test_max_pool_gradient_goes_to_the_first_of_equals():
  x = jnp.ones((1, 2, 2, 1))
  got = jax.jit(jax.grad(lambda x: pooling.max_pool(x).sum()))(x)
  assert got.reshape(-1).tolist() == [1.0, 0.0, 0.0, 0.0]


def test_max_pool_keeps_nan():
  x = jnp.arange(4.0).reshape(1, 2, 2, 1).at[0, 0, 1].set(jnp.nan)
  assert jnp.isnan(pooling.max_pool(x)).all()


def test_max_pool_under_vmap():
  x = np.random.default_rng(0).random((3, 2, 4, 5, 2), np.float32)
  expected = np.stack([_lax_pool(images) for images in x])
  np.testing.assert_array_equal(jax.vmap(pooling.max_pool)(x), expected)
