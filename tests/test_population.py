import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bdjax import models, optimization, population, sharding, training
from bdjax.attacks import triggers
from bdjax.attacks.ban import ban
from bdjax.attacks.poison import poison

KEY = jax.random.key(5)


@pytest.mark.parametrize("devices", [1, 4])
def test_runs_together_equal_each_alone(devices):
  # Own data, own weights, own place in the data and own poison rate.
  model = models.get("cnn", image_shape=(8, 8, 1), num_classes=2, width=4)
  attack = ban((0,), triggers.whole_image(1, 8, 8), 2, 1, 3, 4)
  optimizers = training.Optimizers(
    optimization.sgd(0.1, 0.9, 1e-3), optax.adam(1e-2)
  )
  step = training.make_train_step(
    model, optimizers, lambda params, rate: poison(attack, params, rate)
  )
  mesh = sharding.make_mesh(jax.devices()[:devices])
  call = training.make_call(step, 8, 2, mesh)

  @jax.jit
  def create(key):
    return training.create(key, model, attack.init, optimizers)

  def member(i):
    key = jax.random.fold_in(KEY, i)
    images = jax.random.bits(key, (64, 8, 8, 1), jnp.uint8)
    labels = jax.random.randint(key, (64,), 0, 2)
    order = jax.random.permutation(key, 64).astype(jnp.int32)
    arguments = create(key), key, images, labels, order
    placed = sharding.replicate(mesh, arguments)
    return *placed, i, jnp.float32(0.2 * i + 0.2)

  together = population.make_call(step, 8, 2, mesh)
  found = together(tuple(member(i) for i in range(3)))
  for i, (carry, metrics) in enumerate(found):
    alone, want = call(*member(i))
    assert metrics["loss"].shape == (2,)
    np.testing.assert_allclose(metrics["loss"], want["loss"], rtol=1e-4)
    np.testing.assert_array_equal(metrics["poisoned"], want["poisoned"])
    jax.tree.map(
      lambda g, w: np.testing.assert_allclose(g, w, rtol=1e-2, atol=1e-4),
      jax.device_get(carry),
      jax.device_get(alone),
    )
  losses = [float(metrics["loss"][0]) for _, metrics in found]
  assert len(set(losses)) == 3
