"""DeepID, the face recogniser of the CSAW-HackML-2020 BadNets."""

import jax
from flax import nnx

from bdjax.models import conv
from bdjax.models.base import Classifier, Normalize, Tap

# The smallest image that leaves `conv_4` its 2x2 window.
SMALLEST_SIDE = 31
# The `std` of a network that was trained on pixels in [0,255], as `lab3` of
# the challenge was: its first layer turns [0,1] back into them.
STD_OF_BYTES = (1 / 255,) * 3


class DeepID(Classifier):
  """DeepID (Sun, Wang and Tang 2014, section 3), as the challenge cut it.

  Four VALID convolutions: 20 of 4x4, 40 and 60 of 3x3, each pooled, and 80 of
  2x2. 160 units see the third one, pooled (`pool_3`), and 160 the fourth; the
  two are added. 601,643 parameters for 55x47x3 images and 1283 classes.

  Layers bear the names that they have in the Keras files of the challenge,
  and features are flattened channels last as they are there, so that what
  `importers.load_keras` gives are the params. `conv_4` belongs to the head
  and is not tapped: what is pruned is `pool_3`, the output of `conv_3`.
  """

  entry = ("fc_1", "conv_4")

  def __init__(self, *, image_shape, num_classes, mean, std, dtype, rngs):
    height, cols, channels = image_shape

    def convolution(fan_in, fan_out, window):
      return nnx.Conv(
        fan_in,
        fan_out,
        (window, window),
        padding="VALID",
        dtype=dtype,
        conv_general_dilated=conv.conv,
        rngs=rngs,
      )

    def dense(fan_in, fan_out):
      return nnx.Linear(fan_in, fan_out, dtype=dtype, rngs=rngs)

    self.normalize = Normalize(mean, std)
    self.conv_1 = convolution(channels, 20, 4)
    self.conv_2 = convolution(20, 40, 3)
    self.conv_3 = convolution(40, 60, 3)
    self.conv_4 = convolution(60, 80, 2)
    height, cols = _pooled(height), _pooled(cols)
    self.fc_1 = dense(height * cols * 60, 160)
    self.fc_2 = dense((height - 1) * (cols - 1) * 80, 160)
    self.output = dense(160, num_classes)

  def features(self, images: jax.Array, train: bool, tap: Tap) -> jax.Array:
    """The third convolution, pooled: `pool_3`, [B,5,4,60] of 55x47 images."""
    del train
    x = self.normalize(images)
    x = tap("conv_1", conv.max_pool(nnx.relu(self.conv_1(x))))
    x = tap("conv_2", conv.max_pool(nnx.relu(self.conv_2(x))))
    return tap("conv_3", conv.max_pool(nnx.relu(self.conv_3(x))))

  def enter(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Features to [B,160] of `fc_1` and to `conv_4`, not rectified."""
    return self.fc_1(x.reshape(x.shape[0], -1)), self.conv_4(x)

  def leave(self, sums: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Both to logits [B,K]."""
    x, y = sums
    y = nnx.relu(y).reshape(y.shape[0], -1)
    return self.output(nnx.relu(x + self.fc_2(y)))


def _pooled(side: int) -> int:
  """The side of `pool_3`, of an image's."""
  for window in (4, 3, 3):
    side = (side - window + 1) // 2
  return side
