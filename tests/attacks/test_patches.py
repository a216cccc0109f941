"""Tests of triggers, their places and patch attacks, by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bdjax.attacks import patches
from bdjax.errors import UserError


def test_stamp_by_hand():
  mask = jnp.array([[[0.0], [1.0]], [[0.5], [0.0]]])
  pattern = jnp.array([[[0.9], [0.8]], [[0.6], [0.9]]])
  image = jnp.array([[[0.1], [0.2]], [[0.2], [0.4]]])
  got = patches.stamp(patches.Trigger(mask, pattern), image)
  np.testing.assert_allclose(got[..., 0], [[0.1, 0.8], [0.4, 0.4]], rtol=1e-6)


def test_place_puts_the_patch_and_nothing_else():
  patch = jax.random.uniform(jax.random.key(0), (2, 3, 3))  # not square
  got = jax.jit(patches.place, static_argnums=(2, 3))(
    patch, jnp.array([1, 3]), 4, 6
  )
  mask = np.zeros((4, 6, 1))
  mask[1:3, 3:6] = 1
  np.testing.assert_array_equal(got.mask, mask)
  pattern = np.zeros((4, 6, 3), np.float32)
  pattern[1:3, 3:6] = patch
  np.testing.assert_array_equal(got.pattern, pattern)


def test_place_lays_the_opacity_where_the_patch_is():
  alpha = jnp.array([[[0.25], [0.5]]])
  got = patches.place(jnp.ones((1, 2, 1)), jnp.array([2, 1]), 3, 4, alpha)
  mask = np.zeros((3, 4, 1))
  mask[2, 1:3, 0] = [0.25, 0.5]
  np.testing.assert_array_equal(got.mask, mask)
  np.testing.assert_array_equal(got.pattern, mask > 0)


def test_place_is_differentiable_in_the_patch():
  weights = jnp.arange(16.0).reshape(4, 4, 1)

  def loss(patch):
    placed = patches.place(patch, jnp.array([2, 1]), 4, 4)
    return (weights * placed.pattern).sum()

  got = jax.grad(loss)(jnp.zeros((2, 2, 1)))
  np.testing.assert_array_equal(got[..., 0], [[9.0, 10.0], [13.0, 14.0]])


@pytest.mark.parametrize(
  "size, places",
  [
    ((3, 3), {(2, 5), (2, 6), (3, 5), (3, 6)}),
    ((4, 2), {(2, 5), (2, 6), (2, 7)}),
  ],
)
def test_corners_fill_the_box_and_stay_inside(size, places):
  box = jnp.array([[2, 5, 6, 9]])
  keys = jax.random.split(jax.random.key(0), 500)
  corners = jax.vmap(lambda k: patches.draw_corner(k, box, size))(keys)
  assert set(map(tuple, corners.tolist())) == places


def test_corners_fill_every_box_of_a_set_alike():
  boxes = jnp.array([[0, 0, 3, 3], [4, 0, 8, 3], [0, 5, 3, 8]])
  keys = jax.random.split(jax.random.key(0), 3000)
  corners = jax.vmap(lambda k: patches.draw_corner(k, boxes, (3, 3)))(keys)
  places, counts = np.unique(corners, axis=0, return_counts=True)
  assert places.tolist() == [[0, 0], [0, 5], [4, 0], [5, 0]]
  # A third each, the second box's over its two places; three sd are 77.
  assert abs(counts - [1000, 1000, 500, 500]).max() < 80


def _draw(variables, key, index):
  """Draw patches of 1x2 pixels: 0.25 and 0.75, in gray levels by target."""
  del variables, key
  row = jnp.array([0.25, 0.75])[None, None, :, None]
  return row + index.astype(jnp.float32)[:, None, None, None] / 8


@pytest.mark.parametrize("alpha", [None, [[[1.0], [0.5]]]])
def test_a_patch_attack_by_hand(alpha):
  boxes = jnp.array([[[0, 0, 1, 2]], [[2, 1, 3, 3]]])  # a place a target
  opacity = None if alpha is None else jnp.array(alpha)
  patch = patches.Patch(_draw, boxes, (1, 2), opacity)
  attack = patches.patch_attack((3, 1), patch)
  assert attack.targets.tolist() == [3, 1] and attack.patch is patch
  images = jnp.full((2, 3, 3, 1), 0.5)
  index = jnp.array([1, 0])
  got = jax.jit(attack.apply)({}, jax.random.key(0), images, index)
  expected = np.full((2, 3, 3), 0.5)
  right = np.array([0.875, 0.75]) if alpha is None else [0.6875, 0.625]
  expected[0, 2, 1:] = 0.375, right[0]
  expected[1, 0, :2] = 0.25, right[1]
  np.testing.assert_allclose(got[..., 0], expected, rtol=1e-6)
  mask, pattern = attack.draw_trigger({}, jax.random.key(0), images, index)
  assert mask.shape == pattern.shape == (2, 1, 2, 1)
  np.testing.assert_allclose(
    mask[:, 0, :, 0], [[1, 1 if alpha is None else 0.5]] * 2
  )
  np.testing.assert_allclose(pattern[0, 0, :, 0], [0.375, 0.875])


def test_a_patch_of_the_image_s_size_needs_no_place():
  boxes = jnp.asarray(patches.whole_image(1, 1, 2))
  alpha = jnp.array([[[0.5], [0.0]]])
  images = jnp.full((3, 1, 2, 1), 0.75)
  index = jnp.zeros(3, jnp.int32)
  attack = patches.patch_attack(
    (0,), patches.Patch(_draw, boxes, (1, 2), alpha)
  )
  got = jax.jit(attack.apply)({}, jax.random.key(0), images, index)
  np.testing.assert_allclose(got[:, 0, :, 0], [[0.5, 0.75]] * 3)


def test_grid_of_ten_has_two_rows_of_five():
  boxes = patches.grid(10, 28, 28)
  assert boxes.shape == (10, 1, 4)
  tops = boxes[:, 0, 0].tolist()
  lefts = boxes[:, 0, 1].tolist()
  assert tops == [0] * 5 + [14] * 5
  assert lefts == [0, 5, 11, 16, 22] * 2
  assert boxes[:, 0, 3].tolist() == [5, 11, 16, 22, 28] * 2


@pytest.mark.parametrize("num", [1, 2, 3, 4, 5, 7, 9, 10, 12, 43])
@pytest.mark.parametrize("shape", [(32, 32), (55, 47), (28, 40)])
def test_grid_is_disjoint_and_nearly_covers(num, shape):
  count = np.zeros(shape, int)
  for top, left, bottom, right in patches.grid(num, *shape)[:, 0]:
    count[top:bottom, left:right] += 1
  assert count.max() == 1
  # At most one cell of num + 1 is left empty.
  assert count.mean() > 1 - 1.5 / (num + 1) if num > 3 else count.min() == 1


@pytest.mark.parametrize(
  "boxes, size, words",
  [
    (patches.whole_image(1, 8, 8), (9, 9), "from 1 to 8 .got 9x9"),
    (patches.whole_image(1, 8, 8), (0, 0), "from 1 to 8 .got 0x0"),
    (patches.whole_image(1, 8, 8), (2, 9), "from 1 to 8 .got 2x9"),
    (patches.grid(10, 8, 8), (3, 3), "at most 1, the side of its region"),
    (np.array([[[6, 6, 9, 9]]]), (3, 3), "room for a 3x3 .* .got 6:6"),
    (np.array([[[-1, 0, 2, 3]]]), (3, 3), "room for a 3x3 .* .got -1:0"),
    (np.array([[[0, 0, 2, 3]]]), (3, 2), "at most 2"),
  ],
)
def test_boxes_that_do_not_fit(boxes, size, words):
  with pytest.raises(UserError, match=words):
    patches.check_boxes(boxes, size, 8, 8)


def test_boxes_that_fit():
  patches.check_boxes(patches.grid(10, 28, 28), (5, 5), 28, 28)
  patches.check_boxes(patches.grid(10, 32, 32), (5, 5), 32, 32)
  patches.check_boxes(np.array([[[5, 5, 8, 8]]]), (3, 3), 8, 8)
  patches.check_boxes(np.array([[[0, 0, 8, 2]]]), (8, 2), 8, 8)
