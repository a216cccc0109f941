import jax
import jax.numpy as jnp
import numpy as np

from bdjax.models import Model
from bdjax.models.test_time_augmentation import with_test_time_augmentation


def _model():
  """Its logits are the pixels of the upper left corner, of one channel."""

  def apply(params, batch_stats, images, *, train=False, tap=None):
    del params, tap
    return images[:, 0, :2, 0], {"seen": train}

  return Model(None, apply, None, None)


def test_weights_of_the_views_by_hand():
  # Reflected at the border, so shifted down and right the corner is a 5.
  image = np.arange(1.0, 10.0, dtype=np.float32).reshape(1, 3, 3, 1)
  model = with_test_time_augmentation(_model())
  logits, stats = jax.jit(model.apply)({}, {}, image)
  plain, up, down = [1, 2], [5, 4], [5, 6]
  plain_back, up_back, down_back = [3, 2], [5, 4], [5, 6]
  # Rows of the padded image: 5 4 5 6 5 / 2 1 2 3 2 / 5 4 5 6 5 / 8 7 8 9 8 /
  # 5 4 5 6 5. Its upper left 3x3 begins with 5 4, its lower right with 5 6;
  # mirrored, the first row of these reads 5 4 5 and 5 6 5.
  want = 0.25 * (np.array(plain) + plain_back)
  want = want + 0.125 * (np.array(up) + down + up_back + down_back)
  np.testing.assert_allclose(logits[0], want, rtol=1e-6)
  assert stats == {}


def test_training_goes_by_untouched():
  images = jnp.ones((2, 3, 3, 1))
  logits, stats = with_test_time_augmentation(_model()).apply(
    {}, {}, images, train=True
  )
  assert stats == {"seen": True}
  np.testing.assert_array_equal(logits, jnp.ones((2, 2)))
