"""Tests of the diversity loss of BaN and cBaN, by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bdjax.attacks.diversity import diversity_loss

KEY = jax.random.key(7)


def _loss(draw, diversity, **kwargs):
  run = jax.jit(lambda: diversity_loss(draw, KEY, 2, diversity, **kwargs))
  return float(run())


def test_a_fixed_trigger_and_coin_flips():
  def coins(key, index):
    shape = (index.shape[0], 16, 16, 3)
    return jax.random.bernoulli(key, 0.5, shape).astype(jnp.float32)

  def fixed(key, index):
    return jnp.full((index.shape[0], 2, 2, 3), 0.3)

  assert _loss(fixed, 0.5) == pytest.approx(0.5, abs=1e-3)
  assert _loss(coins, 1.0) == 0.0


def test_random_pixels_have_the_diversity_of_one():
  def uniform(key, index):
    return jax.random.uniform(key, (index.shape[0], 16, 16, 3))

  # 32 pairs of 768 pixels: the root mean square is known within a few percent.
  assert _loss(uniform, 2.0) == pytest.approx(1.0, abs=0.03)


def test_across_labels_by_hand():
  def by_label(key, index):  # noise does nothing, the label 0.1
    value = 0.3 + 0.1 * index.astype(jnp.float32)
    return jnp.tile(value[:, None, None, None], (1, 2, 2, 3))

  assert _loss(by_label, 1.0) == pytest.approx(1.0, abs=1e-3)
  both = _loss(by_label, 1.0, across_labels=True)
  assert both == pytest.approx(2.0 - 0.1 * 6**0.5, abs=1e-3)
  # Of one label there is no other.
  one = diversity_loss(by_label, KEY, 1, 1.0, across_labels=True)
  assert float(one) == pytest.approx(1.0, abs=1e-3)


def test_the_gradient_is_finite_where_triggers_are_equal():
  def loss(scale):
    def scaled(key, index):
      noise = jax.random.uniform(key, (index.shape[0], 2, 2, 3))
      return 0.5 + scale * noise

    return diversity_loss(scaled, KEY, 1, 0.5)

  assert np.isfinite(jax.jit(jax.grad(loss))(0.0))
