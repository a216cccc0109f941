"""Tests of pictures as triggers, of BadNets and of Blended, by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from bdjax.attacks import (
  BadNetsSettings,
  BlendedSettings,
  TriggerVariables,
  badnets,
  blended,
)
from bdjax.attacks.fixed import picture
from bdjax.errors import UserError

KEY = jax.random.key(3)
PIXELS = np.array([[0, 51, 102, 255], [255, 204, 153, 0]], np.uint8)
ALPHA = np.array([[255, 255, 51, 0], [255, 255, 51, 0]], np.uint8)


@pytest.fixture
def path(tmp_path):
  """A gray picture of 2x4 pixels with an alpha channel."""
  file = tmp_path / "trigger.png"
  Image.fromarray(np.stack([PIXELS, ALPHA], -1), "LA").save(file)
  return str(file)


def _trigger(attack, images, index=None):
  index = jnp.zeros(len(images), jnp.int32) if index is None else index
  variables = TriggerVariables({}, {})
  return np.asarray(jax.jit(attack.apply)(variables, KEY, images, index))


def test_a_picture_keeps_its_size(path):
  settings = BadNetsSettings(trigger=path).filled("digits")
  pattern, alpha = picture(settings, (8, 8, 3))
  assert pattern.shape == (2, 4, 3) and alpha.shape == (2, 4, 1)
  for channel in range(3):
    np.testing.assert_allclose(pattern[..., channel], PIXELS / 255, rtol=1e-6)
  np.testing.assert_allclose(alpha[..., 0], ALPHA / 255, rtol=1e-6)


@pytest.mark.parametrize(
  "side, size", [(8, (4, 8)), (2, (1, 2)), (1, (1, 1)), (6, (3, 6))]
)
def test_trigger_size_is_the_longer_side_of_a_picture(path, side, size):
  settings = BadNetsSettings(trigger=path, trigger_size=side).filled("digits")
  pattern, alpha = picture(settings, (8, 8, 1))
  assert pattern.shape == (*size, 1) and alpha.shape == (*size, 1)
  for part in (pattern, alpha):
    assert part.min() >= 0 and part.max() <= 1
  if side == 2:  # means of four pixels at most, so ends are softened
    assert 0 < float(pattern.mean()) < 1


@pytest.mark.parametrize("shape", [(1, 8, 1), (8, 3, 1)])
def test_a_picture_larger_than_the_images_is_refused(path, shape):
  settings = BadNetsSettings(trigger=path).filled("digits")
  with pytest.raises(UserError, match="trigger.png is 2x4, larger than") as e:
    picture(settings, shape)
  assert "set trigger_size to resize it" in str(e.value)
  small = BadNetsSettings(trigger=path, trigger_size=2).filled("digits")
  assert picture(small, shape)[0].shape == (1, 2, 1)


def test_a_picture_that_is_not_there(tmp_path):
  settings = BadNetsSettings(trigger=str(tmp_path / "none.png"))
  with pytest.raises(UserError, match="none.png"):
    badnets(settings.filled("digits"), (8, 8, 1), 4)


def test_badnets_is_one_white_square_in_the_corner():
  attack = badnets(BadNetsSettings().filled("digits"), (8, 7, 3), 4)
  images = jax.random.uniform(KEY, (5, 8, 7, 3))
  expected = np.array(images)
  expected[:, 5:, 4:] = 1.0
  np.testing.assert_array_equal(_trigger(attack, images), expected)


def test_badnets_stamps_a_picture_by_its_alpha(path):
  settings = BadNetsSettings(trigger=path).filled("digits")
  attack = badnets(settings, (5, 6, 1), 4)
  images = jnp.full((1, 5, 6, 1), 0.5)
  expected = np.full((5, 6), 0.5)
  opacity = ALPHA / 255
  expected[3:, 2:] = (1 - opacity) * 0.5 + opacity * PIXELS / 255
  got = _trigger(attack, images)[0, ..., 0]
  np.testing.assert_allclose(got, expected, rtol=1e-6)
  np.testing.assert_array_equal(got[3:, 5], [0.5, 0.5])  # transparent


def test_badnets_has_a_place_for_each_of_several_targets():
  given = BadNetsSettings(target_labels="1,2", locations="0:0;4:4")
  attack = badnets(given.filled("digits"), (8, 8, 1), 4)
  images = jnp.zeros((2, 8, 8, 1))
  got = _trigger(attack, images, jnp.array([0, 1]))
  expected = np.zeros((2, 8, 8, 1))
  expected[0, :3, :3], expected[1, 4:7, 4:7] = 1.0, 1.0
  np.testing.assert_array_equal(got, expected)
  same = BadNetsSettings(target_labels="1,2", locations="corner")
  with pytest.raises(UserError, match="several targets of badnets"):
    badnets(same.filled("digits"), (8, 8, 1), 4)


def _blended(shape, **given):
  return blended(BlendedSettings(**given).filled("digits"), shape, 4)


def test_blended_by_hand():
  attack = _blended((2, 2, 1), alpha=0.25, trigger_seed=3)
  pattern = jax.random.uniform(jax.random.key(3), (1, 2, 2, 1))
  images = jnp.array([[[[0.0], [1.0]], [[0.4], [0.8]]]])
  got = _trigger(attack, images)
  expected = np.array([[[[0.0], [0.75]], [[0.3], [0.6]]]]) + pattern / 4
  np.testing.assert_allclose(got, expected, rtol=1e-6)


def test_blended_at_the_ends_of_its_opacity():
  images = jax.random.uniform(KEY, (3, 6, 5, 3))
  none = _blended((6, 5, 3), alpha=0.0)
  np.testing.assert_array_equal(_trigger(none, images), images)
  whole = _blended((6, 5, 3), alpha=1.0)
  pattern = jax.random.uniform(jax.random.key(0), (1, 6, 5, 3))
  np.testing.assert_array_equal(
    _trigger(whole, images), np.repeat(pattern, 3, 0)
  )


def test_blended_has_a_pattern_for_each_target_and_seed():
  images, index = jnp.zeros((2, 4, 4, 1)), jnp.array([0, 1])
  attack = _blended((4, 4, 1), target_labels="0,2", alpha=1.0)
  first, second = _trigger(attack, images, index)
  other = _blended((4, 4, 1), target_labels="0,2", alpha=1.0, trigger_seed=1)
  assert (first != second).any()
  assert (_trigger(other, images, index)[0] != first).any()


def test_blended_lays_a_picture_at_a_place(path):
  attack = _blended((4, 5, 1), trigger=path, alpha=0.5, locations="1:1")
  images = jnp.full((1, 4, 5, 1), 0.5)
  expected = np.full((4, 5), 0.5)
  opacity = 0.5 * ALPHA / 255
  expected[1:3, 1:] = (1 - opacity) * 0.5 + opacity * PIXELS / 255
  got = _trigger(attack, images)[0, ..., 0]
  np.testing.assert_allclose(got, expected, rtol=1e-6)


def test_one_picture_for_several_targets_needs_places(path):
  with pytest.raises(UserError, match="several targets of blended"):
    _blended((4, 8, 1), trigger=path, target_labels="0,1")
  _blended((4, 8, 1), trigger=path, target_labels="0,1", locations="0:0;2:4")
  _blended((4, 8, 1), trigger=path, all_to_all=True)


def test_the_pattern_of_blended_has_no_size_of_its_own():
  with pytest.raises(UserError, match="trigger_size must be left out"):
    _blended((4, 8, 1), trigger_size=3)
