import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bdjax import models, sharding
from bdjax.attacks.patches import Trigger, stamp
from bdjax.batch import CLEAN, COVER, POISONED, Batch
from bdjax.defenses import tuning
from bdjax.defenses.neural_cleanse import unlearn
from bdjax.models import Weights

KEY = jax.random.key(13)
SHAPE = (8, 8, 1)
CORNER = jnp.zeros(SHAPE).at[6:, 6:].set(1.0)
WHITE = Trigger(CORNER, CORNER)  # a white square in the corner


def _batch(images, labels, role=CLEAN):
  return Batch(images, labels, jnp.full(labels.shape, role, jnp.int8))


def test_a_share_is_stamped_and_labels_stay():
  images = jax.random.uniform(KEY, (2000, *SHAPE))
  batch = _batch(images, jnp.arange(2000, dtype=jnp.int32) % 7, POISONED)
  run = jax.jit(lambda key: unlearn(WHITE)(key, batch))
  got = run(KEY)
  np.testing.assert_array_equal(got.labels, batch.labels)
  assert got.roles.dtype == jnp.int8
  stamped = got.roles == COVER
  assert (got.roles[~stamped] == POISONED).all()
  assert abs(int(stamped.sum()) - 400) < 72  # four sd
  expected = images.at[:, 6:, 6:].set(1.0)
  expected = jnp.where(stamped[:, None, None, None], expected, images)
  np.testing.assert_array_equal(got.images, expected)
  keys = jax.random.split(KEY, 2)
  batched = jax.vmap(run)(keys)
  for i, key in enumerate(keys):
    for many, alone in zip(batched, run(key), strict=True):
      np.testing.assert_array_equal(many[i], alone)


def test_each_of_several_triggers_is_drawn():
  values = jnp.array([0.1, 0.5, 0.9])
  triggers = Trigger(
    jnp.ones((3, 8, 8, 1)), values[:, None, None, None] * jnp.ones((3, *SHAPE))
  )
  batch = _batch(jnp.zeros((600, *SHAPE)), jnp.zeros(600, jnp.int32))
  got = unlearn(triggers, 1.0)(KEY, batch)
  assert (got.roles == COVER).all()
  trigger = Trigger(triggers.mask[1], triggers.pattern[1])
  alone = stamp(trigger, batch.images[0])
  drawn, counts = np.unique(got.images[:, 0, 0, 0], return_counts=True)
  np.testing.assert_allclose(drawn, values, rtol=1e-6)
  assert drawn[1] == alone[0, 0, 0]
  assert abs(counts - 200).max() < 50


@pytest.mark.slow
def test_unlearning_is_tuning_on_stamped_images_with_their_labels():
  model = models.get("cnn", image_shape=SHAPE, num_classes=2, width=8)
  weights = Weights(*jax.jit(model.init)(KEY))
  images = jax.random.randint(KEY, (64, *SHAPE), 0, 256).astype(jnp.uint8)
  labels = jnp.arange(64, dtype=jnp.int32) % 2
  always = functools.partial(unlearn, rate=1.0)

  def tune(images, transform=None, trigger=None):
    mesh = sharding.make_mesh(jax.devices()[:1])
    tune = tuning.compile_tuning(
      model, 16, mesh, epochs=3, learning_rate=0.1, transform=transform
    )
    return tune(KEY, weights, images, labels, trigger=trigger)[0]

  jax.tree.map(
    functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5),
    tune(images, always, WHITE),
    tune(images.at[:, 6:, 6:].set(255)),
  )
