import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bdjax import optimization


def _normal(*shape):
  return jnp.asarray(
    np.random.default_rng(0).standard_normal(shape, np.float32)
  )


def _step(optimizer, params, gradients):
  # Optax mixes dtypes of its own, as in `training`.
  with jax.numpy_dtype_promotion("standard"):
    updates, _ = optimizer.update(gradients, optimizer.init(params), params)
    return optax.apply_updates(params, updates)


def test_schedules():
  peak = optimization.schedule("onecycle", 0.4, 100)
  assert float(peak(0)) == pytest.approx(0.02)
  assert float(peak(25)) == pytest.approx(0.4)
  assert float(peak(100)) == pytest.approx(0.0, abs=1e-7)
  fall = optimization.schedule("linear", 0.4, 100)
  assert [float(fall(s)) for s in (0, 50, 100)] == pytest.approx([0.4, 0.2, 0])
  cosine = optimization.schedule("cosine", 0.4, 100)
  assert float(cosine(50)) == pytest.approx(0.2)
  constant = optimization.schedule("constant", 0.4, 100)
  assert float(constant(99)) == pytest.approx(0.4)
  with pytest.raises(ValueError, match="exponential"):
    optimization.schedule("exponential", 0.4, 100)


def test_muon_turns_each_filter_by_the_learning_rate():
  kernel, gradient = 5.0 * _normal(3, 3, 4, 8), _normal(3, 3, 4, 8)[::-1]
  optimizer = optimization.muon(0.1, 0.6, 0.0)
  after = _step(optimizer, {"a": kernel}, {"a": gradient})["a"]
  before = kernel * (8**0.5 / jnp.linalg.norm(kernel))
  update = ((before - after) / 0.1).reshape(36, 8)
  # Newton and Schulz bring the singular values near 1, not onto it.
  values = np.linalg.svd(update, compute_uv=False)
  assert 0.5 < values.min() and values.max() < 1.3
  # All of them near one, so it is the gradient's own directions that count.
  u, _, v = np.linalg.svd(gradient.reshape(36, 8), full_matrices=False)
  assert np.sum(np.asarray(update) * (u @ v)) / 8 > 0.7


def test_muon_gives_biases_and_head_their_own_rates():
  params = {"bias": jnp.ones(3), "head": jnp.ones((4, 2))}
  gradients = jax.tree.map(jnp.zeros_like, params)
  gradients["bias"] += 1e-3
  optimizer = optimization.muon(0.01, 0.6, 0.5)
  after = _step(optimizer, params, gradients)
  # Nesterov's first step is 1 + 0.85 gradients; both decay at one pace.
  shrink = 1.85 * 0.01 * 6.9 * 0.5
  np.testing.assert_allclose(after["head"], 1 - shrink, rtol=1e-6)
  moved = 1.85 * 0.01 * 440 * 1e-3
  np.testing.assert_allclose(after["bias"], 1 - shrink - moved, rtol=1e-5)


def test_muon_leaves_the_masks_of_a_pruned_network_alone():
  params = {"masks": {"conv_1": jnp.ones(3)}, "network": {"bias": jnp.ones(3)}}
  gradients = jax.tree.map(jnp.zeros_like, params)
  after = _step(optimization.muon(0.01, 0.6, 0.5), params, gradients)
  np.testing.assert_array_equal(after["masks"]["conv_1"], 1.0)
  assert (after["network"]["bias"] < 1.0).all()
