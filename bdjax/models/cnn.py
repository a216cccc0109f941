"""A small convolutional network for 28x28 digits."""

import jax
from flax import nnx

from bdjax.models import conv, pooling
from bdjax.models.base import Norm, Structure, Tap
from bdjax.models.classifier import Classifier, Normalize
from bdjax.models.spec import ModelSpec


class CNN(Classifier):
  """Two 3x3 convolutions (16, 32), each pooled, and 128 hidden units.

  206,922 parameters for 28x28x1 images and ten classes. With `batch_norm` each
  convolution is normalised before its ReLU, and has no bias of its own:
  206,970 parameters.
  """

  head_inputs = ("hidden",)

  def __init__(
    self,
    *,
    image_shape,
    num_classes,
    mean,
    std,
    dtype,
    width,
    rngs,
    batch_norm=False,
  ):
    height, cols, channels = image_shape
    filters = (width // 4, width // 2)

    def convolution(fan_in, fan_out):
      return nnx.Conv(
        fan_in,
        fan_out,
        (3, 3),
        padding="SAME",
        use_bias=not batch_norm,
        dtype=dtype,
        conv_general_dilated=conv.conv,
        rngs=rngs,
      )

    def norm(channels):
      return nnx.BatchNorm(channels, momentum=0.9, dtype=dtype, rngs=rngs)

    self.normalize = Normalize(mean, std)
    self.batch_norm = batch_norm
    self.conv_1 = convolution(channels, filters[0])
    self.conv_2 = convolution(filters[0], filters[1])
    if batch_norm:
      self.norm_1 = norm(filters[0])
      self.norm_2 = norm(filters[1])
    flat = (height // 4) * (cols // 4) * filters[1]
    self.hidden = nnx.Linear(flat, 2 * width, dtype=dtype, rngs=rngs)
    self.logits = nnx.Linear(2 * width, num_classes, dtype=dtype, rngs=rngs)

  def features(self, images: jax.Array, train: bool, tap: Tap) -> jax.Array:
    """Compute the second convolution, pooled: [B,H//4,W//4,width//2]."""
    x = self.normalize(images)
    for number in (1, 2):
      x = getattr(self, f"conv_{number}")(x)
      if self.batch_norm:
        norm = getattr(self, f"norm_{number}")
        x = norm(x, use_running_average=not train)
      x = tap(f"conv_{number}", pooling.max_pool(nnx.relu(x)))
    return x

  def head_linear(self, x: jax.Array) -> jax.Array:
    """Compute the hidden units of features, before ReLU."""
    return self.hidden(x.reshape(x.shape[0], -1))

  def head_rest(self, x: jax.Array) -> jax.Array:
    """Compute logits [B,K] of the hidden units."""
    return self.logits(nnx.relu(x))

  def structure(self) -> Structure:
    """Return the two convolutions as stages."""
    stages = ("conv_1", "conv_2")
    if not self.batch_norm:
      return Structure(stages, (), {layer: (layer, "bias") for layer in stages})
    paths = {layer: (layer.replace("conv", "norm"),) for layer in stages}
    return Structure(
      stages,
      tuple(Norm.at(path, (layer,)) for layer, path in paths.items()),
      {layer: (*path, "bias") for layer, path in paths.items()},
    )


SPEC = ModelSpec(
  CNN, ("width", "batch_norm"), kernel="conv_1.kernel", width_per_filter=4
)
