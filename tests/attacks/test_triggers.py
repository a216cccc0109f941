import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bdjax.attacks import triggers
from bdjax.errors import UserError


def test_stamp_by_hand():
  mask = jnp.array([[[0.0], [1.0]], [[0.5], [0.0]]])
  pattern = jnp.array([[[0.9], [0.8]], [[0.6], [0.9]]])
  image = jnp.array([[[0.1], [0.2]], [[0.2], [0.4]]])
  got = triggers.stamp(triggers.Trigger(mask, pattern), image)
  np.testing.assert_allclose(got[..., 0], [[0.1, 0.8], [0.4, 0.4]], rtol=1e-6)


def test_place_puts_the_patch_and_nothing_else():
  patch = jax.random.uniform(jax.random.key(0), (2, 2, 3))
  got = jax.jit(triggers.place, static_argnums=(2, 3))(
    patch, jnp.array([1, 3]), 4, 6
  )
  mask = np.zeros((4, 6, 1))
  mask[1:3, 3:5] = 1
  np.testing.assert_array_equal(got.mask, mask)
  pattern = np.zeros((4, 6, 3), np.float32)
  pattern[1:3, 3:5] = patch
  np.testing.assert_array_equal(got.pattern, pattern)


def test_place_is_differentiable_in_the_patch():
  weights = jnp.arange(16.0).reshape(4, 4, 1)

  def loss(patch):
    placed = triggers.place(patch, jnp.array([2, 1]), 4, 4)
    return (weights * placed.pattern).sum()

  got = jax.grad(loss)(jnp.zeros((2, 2, 1)))
  np.testing.assert_array_equal(got[..., 0], [[9.0, 10.0], [13.0, 14.0]])


def test_corners_fill_the_box_and_stay_inside():
  box = jnp.array([[2, 5, 6, 9]])
  keys = jax.random.split(jax.random.key(0), 500)
  corners = jax.vmap(lambda k: triggers.draw_corner(k, box, 3))(keys)
  assert set(map(tuple, corners.tolist())) == {(2, 5), (2, 6), (3, 5), (3, 6)}


def test_corners_fill_every_box_of_a_set_alike():
  boxes = jnp.array([[0, 0, 3, 3], [4, 0, 8, 3], [0, 5, 3, 8]])
  keys = jax.random.split(jax.random.key(0), 3000)
  corners = jax.vmap(lambda k: triggers.draw_corner(k, boxes, 3))(keys)
  places, counts = np.unique(corners, axis=0, return_counts=True)
  assert places.tolist() == [[0, 0], [0, 5], [4, 0], [5, 0]]
  # A third each, the second box's over its two places; three sd are 77.
  assert abs(counts - [1000, 1000, 500, 500]).max() < 80


def test_grid_of_ten_has_two_rows_of_five():
  boxes = triggers.grid(10, 28, 28)
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
  for top, left, bottom, right in triggers.grid(num, *shape)[:, 0]:
    count[top:bottom, left:right] += 1
  assert count.max() == 1
  # At most one cell of num + 1 is left empty.
  assert count.mean() > 1 - 1.5 / (num + 1) if num > 3 else count.min() == 1


@pytest.mark.parametrize(
  "boxes, size, words",
  [
    (triggers.whole_image(1, 8, 8), 9, "does not fit into images of 8x8"),
    (triggers.whole_image(1, 8, 8), 0, "take trigger_size 1 to 8"),
    (triggers.grid(10, 8, 8), 3, "take trigger_size up to 1"),
    (np.array([[[6, 6, 9, 9]]]), 3, "location 6:6 leaves no room"),
    (np.array([[[-1, 0, 2, 3]]]), 3, "location -1:0 leaves no room"),
  ],
)
def test_what_does_not_fit(boxes, size, words):
  with pytest.raises(UserError, match=words):
    triggers.check_boxes(boxes, size, 8, 8)


def test_what_fits():
  triggers.check_boxes(triggers.grid(10, 28, 28), 5, 28, 28)
  triggers.check_boxes(triggers.grid(10, 32, 32), 5, 32, 32)
  triggers.check_boxes(np.array([[[5, 5, 8, 8]]]), 3, 8, 8)
