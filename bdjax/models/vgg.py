"""A VGG-like network with batch normalisation."""

import jax
from flax import nnx

from bdjax.models import conv, pooling
from bdjax.models.base import Norm, Structure, Tap
from bdjax.models.classifier import Classifier, Normalize
from bdjax.models.spec import ModelSpec


class MiniVGG(Classifier):
  """Six 3x3 convolutions in three pooled pairs, then 512 hidden units.

  With width 64: 64-64, 128-128, 256-256 filters, batch normalisation after
  each convolution.

  References:
    Simonyan and Zisserman, 2015, Very Deep Convolutional Networks for
    Large-Scale Image Recognition; cut down.
  """

  head_inputs = ("hidden",)

  def __init__(
    self, *, image_shape, num_classes, mean, std, dtype, width, rngs
  ):
    height, cols, fan_in = image_shape
    self.normalize = Normalize(mean, std)
    convs, norms = [], []
    for fan_out in (width, width, 2 * width, 2 * width, 4 * width, 4 * width):
      convs.append(
        nnx.Conv(
          fan_in,
          fan_out,
          (3, 3),
          padding="SAME",
          use_bias=False,
          dtype=dtype,
          conv_general_dilated=conv.conv,
          rngs=rngs,
        )
      )
      norms.append(nnx.BatchNorm(fan_out, momentum=0.9, dtype=dtype, rngs=rngs))
      fan_in = fan_out
    self.convs, self.norms = nnx.List(convs), nnx.List(norms)
    flat = (height // 8) * (cols // 8) * 4 * width
    self.hidden = nnx.Linear(flat, 8 * width, dtype=dtype, rngs=rngs)
    self.logits = nnx.Linear(8 * width, num_classes, dtype=dtype, rngs=rngs)

  def features(self, images: jax.Array, train: bool, tap: Tap) -> jax.Array:
    """Compute the sixth convolution, pooled: [B,H//8,W//8,4*width]."""
    x = self.normalize(images)
    for i, (layer, norm) in enumerate(zip(self.convs, self.norms, strict=True)):
      x = nnx.relu(norm(layer(x), use_running_average=not train))
      if i % 2:
        x = pooling.max_pool(x)
      x = tap(f"convs.{i}", x)
    return x

  def head_linear(self, x: jax.Array) -> jax.Array:
    """Compute the hidden units of features, before ReLU."""
    return self.hidden(x.reshape(x.shape[0], -1))

  def head_rest(self, x: jax.Array) -> jax.Array:
    """Compute logits [B,K] of the hidden units."""
    return self.logits(nnx.relu(x))

  def structure(self) -> Structure:
    """Return the three pairs as stages."""
    layers = range(len(self.convs))
    norms = tuple(Norm.at(("norms", i), ("convs", i)) for i in layers)
    biases = {f"convs.{i}": ("norms", i, "bias") for i in layers}
    return Structure(tuple(list(biases)[1::2]), norms, biases)


SPEC = ModelSpec(MiniVGG, kernel="convs.0.kernel")
