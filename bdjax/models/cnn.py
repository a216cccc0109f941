"""A small convolutional network for 28x28 digits."""

import jax
from flax import nnx

from bdjax.models import conv
from bdjax.models.base import Classifier, Normalize, Tap


class CNN(Classifier):
  """Two 3x3 convolutions (16, 32), each pooled, and 128 hidden units.

  206,922 parameters for 28x28x1 images and ten classes.
  """

  entry = ("hidden",)

  def __init__(
    self, *, image_shape, num_classes, mean, std, dtype, width, rngs
  ):
    height, cols, channels = image_shape
    filters = (width // 4, width // 2)

    def convolution(fan_in, fan_out):
      return nnx.Conv(
        fan_in,
        fan_out,
        (3, 3),
        padding="SAME",
        dtype=dtype,
        conv_general_dilated=conv.conv,
        rngs=rngs,
      )

    self.normalize = Normalize(mean, std)
    self.conv_1 = convolution(channels, filters[0])
    self.conv_2 = convolution(filters[0], filters[1])
    flat = (height // 4) * (cols // 4) * filters[1]
    self.hidden = nnx.Linear(flat, 2 * width, dtype=dtype, rngs=rngs)
    self.logits = nnx.Linear(2 * width, num_classes, dtype=dtype, rngs=rngs)

  def features(self, images: jax.Array, train: bool, tap: Tap) -> jax.Array:
    """The second convolution, pooled: [B,H//4,W//4,width//2]."""
    del train
    x = self.normalize(images)
    x = tap("conv_1", conv.max_pool(nnx.relu(self.conv_1(x))))
    return tap("conv_2", conv.max_pool(nnx.relu(self.conv_2(x))))

  def enter(self, x: jax.Array) -> jax.Array:
    """Features to the hidden units, before they are rectified."""
    return self.hidden(x.reshape(x.shape[0], -1))

  def leave(self, x: jax.Array) -> jax.Array:
    """Hidden units to logits [B,K]."""
    return self.logits(nnx.relu(x))
