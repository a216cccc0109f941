import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bdjax import evaluation, models, sharding
from bdjax.attacks import triggers
from bdjax.attacks.random_backdoor import random_backdoor

KEY = jax.random.key(5)
IMAGES = jax.random.randint(KEY, (21, 8, 8, 1), 0, 256).astype(jnp.uint8)


@pytest.fixture(scope="module")
def network():
  model = models.get("cnn", image_shape=(8, 8, 1), num_classes=4, width=4)
  return model, *jax.jit(model.init)(KEY)


@pytest.fixture(scope="module")
def predictions(network):
  model, params, stats = network
  images = np.asarray(IMAGES, np.float32) / 255
  apply = jax.jit(model.apply, static_argnums=3)
  return np.asarray(apply(params, stats, images, False)[0]).argmax(1)


@pytest.mark.parametrize("batch", [4, 8, 64])
@pytest.mark.parametrize("devices", [1, 4])
def test_predict_equals_the_network_whatever_the_batch(
  network, predictions, batch, devices
):
  model, params, stats = network
  mesh = sharding.make_mesh(jax.devices()[:devices])
  predict = evaluation.make_predict(model, batch, mesh)
  images = sharding.replicate(mesh, IMAGES)
  got = predict(params, stats, images)
  np.testing.assert_array_equal(got, predictions)


class _Bright:
  """A 'network' that sees how many white pixels there are."""

  @staticmethod
  def apply(params, batch_stats, images, train):
    white = (images == 1.0).sum((1, 2, 3))
    return jax.nn.one_hot(white, 17), batch_stats


def test_every_image_is_triggered_and_the_target_reaches_the_generator():
  attack = random_backdoor((3, 5), triggers.whole_image(2, 8, 8), 2, 1)

  def patches(params, key, index):  # white pixels: 2 or 4 by target
    patch = jnp.array([[[1.0], [1.0]], [[0.0], [0.0]]]), jnp.ones((2, 2, 1))
    return jnp.stack(patch)[index]

  attack = attack._replace(patches=patches)
  mesh = sharding.make_mesh(jax.devices()[:1])
  predict = evaluation.make_predict_triggered(_Bright, attack, 8, mesh)
  black = jnp.zeros((21, 8, 8, 1), jnp.uint8)
  got = evaluation.triggered_predictions(
    predict, {}, {}, {}, KEY, black, num_targets=2, draws=3
  )
  assert got.shape == (3, 2, 21)
  assert (got[:, 0] == 2).all() and (got[:, 1] == 4).all()


def test_draws_differ_and_repeat_with_the_key():
  # `_Bright` counts white pixels; a patch of coin flips has a random number.
  attack = random_backdoor((0,), triggers.whole_image(1, 8, 8), 4, 1)

  def coins(params, key, index):
    shape = (index.shape[0], 4, 4, 1)
    return jax.random.bernoulli(key, 0.5, shape).astype(jnp.float32)

  mesh = sharding.make_mesh(jax.devices()[:1])
  predict = evaluation.make_predict_triggered(
    _Bright, attack._replace(patches=coins), 8, mesh
  )
  black = jnp.zeros((21, 8, 8, 1), jnp.uint8)
  run = functools.partial(evaluation.triggered_predictions, predict, {}, {}, {})
  first = run(KEY, black, 1, 4)
  np.testing.assert_array_equal(first, run(KEY, black, 1, 4))
  rows = first.reshape(4, 21)
  assert len(np.unique(rows, axis=0)) == 4  # draws
  assert len(np.unique(rows, axis=1).T) > 1  # images


def test_sample_triggered_stamps_each_image():
  attack = random_backdoor((1,), triggers.whole_image(1, 8, 8), 2, 1)
  images = np.asarray(IMAGES[:5], np.float32) / 255

  @jax.jit
  def sample(images, index):
    return evaluation.sample_triggered(attack, {}, KEY, images, index)

  got = np.asarray(sample(images, np.zeros(5, np.int32)))
  assert ((got != images).sum((1, 2, 3)) == 4).all()


@pytest.mark.parametrize("batch", [4, 64])
def test_over_images_keeps_rows_and_gives_each_batch_a_key(batch):
  mesh = sharding.make_mesh()

  def function(scale, key, images):
    noise = jax.random.uniform(key)
    return scale * images.mean((1, 2, 3)), jnp.full(images.shape[0], noise)

  run = evaluation.over_images(function, batch, mesh)
  means, noise = run(jnp.float32(2), KEY, sharding.replicate(mesh, IMAGES))
  want = 2 * np.asarray(IMAGES, np.float32).mean((1, 2, 3)) / 255
  np.testing.assert_allclose(means, want, rtol=1e-5)
  assert len(np.unique(noise)) == -(-21 // batch)


def test_over_triggered_triggers_what_counts():
  attack = random_backdoor((3, 5), triggers.whole_image(2, 8, 8), 2, 1)
  white = attack._replace(
    patches=lambda params, key, index: jnp.ones((index.shape[0], 2, 2, 1))
  )
  mesh = sharding.make_mesh(jax.devices()[:1])
  labels = jnp.arange(40, dtype=jnp.int32) % 2 * 3  # 0 and 3
  black = jnp.zeros((40, 8, 8, 1), jnp.uint8)

  def count(args, key, images):
    return (images == 1.0).sum((1, 2, 3))

  run = evaluation.over_triggered(count, white, 16, mesh)
  whites, targets, counts = run({}, {}, KEY, black, labels)
  assert counts.all() and (whites == 4).all()
  assert (targets[labels == 3] == 5).all()
  assert set(np.asarray(targets[labels == 0]).tolist()) == {3, 5}
  one = white._replace(targets=white.targets[:1], boxes=white.boxes[:1])
  run = evaluation.over_triggered(count, one, 16, mesh)
  whites, _, counts = run({}, {}, KEY, black, labels)
  np.testing.assert_array_equal(counts, labels != 3)
  np.testing.assert_array_equal(whites, 4 * np.asarray(labels != 3))
