import functools

import jax
import jax.numpy as jnp
import numpy as np

from bdjax.attacks.patches import Trigger, stamp
from bdjax.batch import CLEAN, COVER, Batch
from bdjax.defenses.neural_cleanse.unlearning import unlearn
from bdjax.defenses.tuning import compile_tuning

KEY = jax.random.key(13)
SHAPE = (8, 8, 1)
# White, in the lower right corner.
WHITE = Trigger(
  jnp.zeros((8, 8, 1)).at[6:, 6:].set(1.0), jnp.zeros(SHAPE).at[6:, 6:].set(1.0)
)


def _batch(images, labels):
  return Batch(images, labels, jnp.full(labels.shape, CLEAN, jnp.int8))


def test_unlearning_is_tuning_on_stamped_images_with_their_labels(defender):
  tune = functools.partial(
    compile_tuning,
    defender.model,
    16,
    defender.mesh,
    epochs=3,
    learning_rate=0.1,
  )
  images, labels = defender.images, defender.labels
  always = functools.partial(unlearn, rate=1.0)
  got, metrics = tune(transform=always)(
    KEY, defender.weights, images, labels, None, WHITE
  )
  assert metrics["cover"].tolist() == [16] * 12
  stamped = images.at[:, 6:, 6:].set(255)
  expected, _ = tune()(KEY, defender.weights, stamped, labels)
  jax.tree.map(
    functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5),
    got,
    expected,
  )


def test_a_share_is_stamped_and_labels_stay():
  images = jax.random.uniform(KEY, (2000, *SHAPE))
  labels = jnp.arange(2000, dtype=jnp.int32) % 7
  run = jax.jit(lambda key: unlearn(WHITE)(key, _batch(images, labels)))
  got = run(KEY)
  np.testing.assert_array_equal(got.labels, labels)
  stamped = got.roles == COVER
  assert ((got.roles == CLEAN) | stamped).all()
  assert abs(int(stamped.sum()) - 400) < 72  # four sd
  expected = images.at[:, 6:, 6:].set(1.0)
  expected = jnp.where(stamped[:, None, None, None], expected, images)
  np.testing.assert_array_equal(got.images, expected)
  keys = jax.random.split(KEY, 2)
  batched = jax.vmap(run)(keys)
  for i, key in enumerate(keys):
    alone = jax.tree.map(lambda x, i=i: x[i], batched)
    jax.tree.map(np.testing.assert_array_equal, alone, run(key))


def test_each_of_several_triggers_is_drawn():
  triggers = Trigger(
    jnp.ones((3, 8, 8, 1)),
    jnp.array([0.1, 0.5, 0.9])[:, None, None, None] * jnp.ones((3, *SHAPE)),
  )
  images = jnp.zeros((600, *SHAPE))
  got = unlearn(triggers, 1.0)(KEY, _batch(images, jnp.zeros(600, jnp.int32)))
  assert (got.roles == COVER).all()
  middle = stamp(Trigger(triggers.mask[1], triggers.pattern[1]), images[0])
  values, counts = np.unique(got.images[:, 0, 0, 0], return_counts=True)
  np.testing.assert_allclose(values, [0.1, 0.5, 0.9], rtol=1e-6)
  assert values[1] == middle[0, 0, 0]
  assert abs(counts - 200).max() < 50
