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


@pytest.mark.parametrize(
  "name, expected",
  [
    ("onecycle", {0: 0.02, 25: 0.4, 100: 0.0}),
    ("linear", {0: 0.4, 50: 0.2, 100: 0.0}),
    ("cosine", {0: 0.4, 50: 0.2, 100: 0.0}),
    ("constant", {0: 0.4, 99: 0.4}),
  ],
)
def test_schedules_by_hand(name, expected):
  rate = optimization.schedule(name, 0.4, 100)
  for step, value in expected.items():
    assert float(rate(step)) == pytest.approx(value, abs=1e-7)


def test_every_schedule_of_one_step_is_finite():
  for name in optimization.SCHEDULES:
    rate = float(optimization.schedule(name, 0.4, 1)(0))
    assert 0.0 < rate < 0.41
  with pytest.raises(ValueError, match=r"one of .*cosine.* \(got exponential"):
    optimization.schedule("exponential", 0.4, 100)


def test_sgd_decays_kernels_and_not_vectors():
  params = {"kernel": jnp.ones((3, 2)), "bias": jnp.ones(2)}
  gradients = {"kernel": jnp.zeros((3, 2)), "bias": jnp.full(2, 0.2)}
  after = _step(optimization.sgd(0.5, 0.9, 0.1), params, gradients)
  # Nesterov's first step is 1 + 0.9 gradients.
  np.testing.assert_allclose(after["kernel"], 1 - 0.5 * 1.9 * 0.1, rtol=1e-6)
  np.testing.assert_allclose(after["bias"], 1 - 0.5 * 1.9 * 0.2, rtol=1e-6)


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
