"""DeepID, the face recogniser of the CSAW-HackML-2020 BadNets."""

import jax
from flax import nnx

from bdjax.models import conv, pooling
from bdjax.models.base import Structure, Tap
from bdjax.models.classifier import Classifier, Normalize
from bdjax.models.spec import ModelSpec

# The smallest image that leaves `conv_4` its 2x2 window.
SMALLEST_SIDE = 31


class DeepID(Classifier):
  """DeepID, as the challenge cut it.

  Four VALID convolutions: 20 of 4x4, 40 and 60 of 3x3, each pooled, and 80 of
  2x2. 160 units see the third one, pooled (`pool_3`), and 160 the fourth; the
  two are added. 601,643 parameters for 55x47x3 images and 1283 classes.

  Layers have the names of the challenge's Keras files, and features are
  flattened channels last as they are there, so that `importers.load_keras`
  returns the params. `conv_4` belongs to the head and is not tapped: the layer
  that is pruned is `pool_3`, the output of `conv_3`.

  References:
    Sun, Wang and Tang, 2014, Deep Learning Face Representation from Predicting
    10,000 Classes, section 3.
  """

  head_inputs = ("fc_1", "conv_4")

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
    """Compute `pool_3`: the third convolution, pooled, [B,5,4,60] of 55x47."""
    del train
    x = self.normalize(images)
    x = tap("conv_1", pooling.max_pool(nnx.relu(self.conv_1(x))))
    x = tap("conv_2", pooling.max_pool(nnx.relu(self.conv_2(x))))
    return tap("conv_3", pooling.max_pool(nnx.relu(self.conv_3(x))))

  def head_linear(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Compute [B,160] of `fc_1` and the map of `conv_4`, before ReLU."""
    return self.fc_1(x.reshape(x.shape[0], -1)), self.conv_4(x)

  def head_rest(self, sums: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Compute logits [B,K] of both."""
    x, y = sums
    y = nnx.relu(y).reshape(y.shape[0], -1)
    return self.output(nnx.relu(x + self.fc_2(y)))

  def structure(self) -> Structure:
    """Return the three tapped convolutions as stages."""
    biases = {f"conv_{i}": (f"conv_{i}", "bias") for i in (1, 2, 3)}
    return Structure(tuple(biases), (), biases)


def _pooled(side: int) -> int:
  """Return the side of `pool_3`, given the image's."""
  for window in (4, 3, 3):
    side = (side - window + 1) // 2
  return side


SPEC = ModelSpec(
  DeepID,
  options=(),
  smallest_side=SMALLEST_SIDE,
  logits="output.kernel",
  has=("conv_4.kernel",),
)
