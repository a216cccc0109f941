"""Tests of predictions for freshly triggered images."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from bdjax import sharding
from bdjax.attacks import Patch, TriggerVariables, patch_attack
from bdjax.attacks.patches import whole_image
from bdjax.evaluation import over_triggered, predict_draws, predict_triggered

KEY = jax.random.key(5)
BLACK = jnp.zeros((21, 8, 8, 1), jnp.uint8)
NO_VARIABLES = TriggerVariables({}, {})


class _Bright:
  """A 'network' that sees how many white pixels there are."""

  @staticmethod
  def apply(params, batch_stats, images):
    white = (images == 1.0).sum((1, 2, 3))
    return jax.nn.one_hot(white, 17), batch_stats


def _mesh():
  return sharding.make_mesh(jax.devices()[:1])


def _attack(targets, draw, side):
  boxes = jnp.asarray(whole_image(len(targets), 8, 8))
  return patch_attack(targets, Patch(draw, boxes, (side, side)))


def _by_target(variables, key, index):
  """Draw squares of 2 or, for the second target, 4 white pixels."""
  del variables, key
  patch = jnp.array([[[1.0], [1.0]], [[0.0], [0.0]]]), jnp.ones((2, 2, 1))
  return jnp.stack(patch)[index]


def _coins(variables, key, index):
  shape = (index.shape[0], 4, 4, 1)
  return jax.random.bernoulli(key, 0.5, shape).astype(jnp.float32)


def test_every_image_is_triggered_and_the_target_reaches_the_trigger():
  attack = _attack((3, 5), _by_target, 2)
  predict = predict_triggered(_Bright, attack, 8, _mesh())
  got = predict_draws(
    predict, ({}, {}), NO_VARIABLES, KEY, BLACK, num_targets=2, draws=3
  )
  assert got.shape == (3, 2, 21) and got.dtype == np.int32
  assert (got[:, 0] == 2).all() and (got[:, 1] == 4).all()


def test_the_trigger_of_the_test_or_another_that_is_given():
  def white(count):
    def apply(variables, key, images, index):
      return images.at[:, 0, :count].set(1.0)

    return apply

  attack = _attack((0,), _by_target, 2)._replace(apply_test=white(5))
  args = ({}, {}), NO_VARIABLES, KEY, BLACK, jnp.int32(0)
  assert (predict_triggered(_Bright, attack, 8, _mesh())(*args) == 5).all()
  covers = predict_triggered(_Bright, attack, 8, _mesh(), white(7))
  assert (covers(*args) == 7).all()


def test_draws_differ_and_repeat_with_the_key():
  # `_Bright` counts white pixels; a patch of coin flips has a random number.
  predict = predict_triggered(_Bright, _attack((0,), _coins, 4), 8, _mesh())
  run = functools.partial(predict_draws, predict, ({}, {}), NO_VARIABLES)
  first = run(KEY, BLACK, 1, 4)
  np.testing.assert_array_equal(first, run(KEY, BLACK, 1, 4))
  rows = first.reshape(4, 21)
  assert len(np.unique(rows, axis=0)) == 4  # draws
  assert len(np.unique(rows, axis=1).T) > 1  # images


def _count(args, key, images):
  del args, key
  return (images == 1.0).sum((1, 2, 3))


def test_over_triggered_triggers_what_counts():
  def white(variables, key, index):
    return jnp.ones((index.shape[0], 2, 2, 1))

  labels = jnp.arange(40, dtype=jnp.int32) % 2 * 3  # 0 and 3
  black = jnp.zeros((40, 8, 8, 1), jnp.uint8)
  run = over_triggered(_count, _attack((3, 5), white, 2), 16, _mesh())
  whites, targets, counts = run({}, NO_VARIABLES, KEY, black, labels)
  assert counts.all() and (whites == 4).all()
  assert (targets[labels == 3] == 5).all()
  assert set(np.asarray(targets[labels == 0]).tolist()) == {3, 5}
  run = over_triggered(_count, _attack((3,), white, 2), 16, _mesh())
  whites, _, counts = run({}, NO_VARIABLES, KEY, black, labels)
  np.testing.assert_array_equal(counts, labels != 3)
  np.testing.assert_array_equal(whites, 4 * np.asarray(labels != 3))


def test_each_batch_has_a_key_for_its_triggers_and_one_for_the_function():
  def noise(args, key, images):
    return jnp.full(images.shape[0], jax.random.uniform(key)), images

  labels = jnp.ones(21, jnp.int32)
  run = over_triggered(noise, _attack((0,), _coins, 4), 8, _mesh())
  (drawn, images), *_ = run({}, NO_VARIABLES, KEY, BLACK, labels)
  assert len(np.unique(drawn)) == 3
  images = np.asarray(images).reshape(21, -1)
  assert len(np.unique(images, axis=0)) == 21
