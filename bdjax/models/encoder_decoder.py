"""Convolutional encoder-decoders, from images to images of the same size.

References:
  Nguyen and Tran, 2020, Input-Aware Dynamic Backdoor Attack, and its released
  code: the networks that make triggers and masks.
"""

import jax
from flax import nnx

from bdjax.models import conv, pooling
from bdjax.models.base import ImageNetwork, image_network_from_module
from bdjax.models.classifier import Normalize


class ConvBlock(nnx.Module):
  """A 3x3 convolution, batch normalisation, and perhaps ReLU."""

  def __init__(self, fan_in, fan_out, *, relu=True, rngs):
    self.relu = relu
    self.conv = nnx.Conv(
      fan_in,
      fan_out,
      (3, 3),
      padding="SAME",
      use_bias=False,
      conv_general_dilated=conv.conv,
      rngs=rngs,
    )
    # The released code's momentum, 0.05 in PyTorch's convention.
    self.norm = nnx.BatchNorm(fan_out, momentum=0.95, rngs=rngs)

  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    """Map [B,H,W,fan_in] to [B,H,W,fan_out]."""
    x = self.norm(self.conv(x), use_running_average=not train)
    return nnx.relu(x) if self.relu else x


class EncoderDecoder(nnx.Module):
  """Steps of two blocks and a pooling, one block, and as many steps back.

  A step back doubles the sides by bilinear interpolation, to those that the
  map had before its pooling. The last block has no ReLU.
  """

  def __init__(self, *, image_shape, out_channels, widths, mean, std, rngs):
    self.normalize = Normalize(mean, std)

    def pair(fan_in, between, fan_out, relu=True):
      first = ConvBlock(fan_in, between, rngs=rngs)
      second = ConvBlock(between, fan_out, relu=relu, rngs=rngs)
      return nnx.List([first, second])

    inputs = (image_shape[2], *widths[:-1])
    self.down = nnx.List(
      pair(fan_in, width, width)
      for fan_in, width in zip(inputs, widths, strict=True)
    )
    self.middle = ConvBlock(widths[-1], widths[-1], rngs=rngs)
    outputs = (out_channels, *widths[:-1])
    self.up = nnx.List(
      pair(width, width, fan_out, relu=step > 0)
      for step, width, fan_out in reversed(
        list(zip(range(len(widths)), widths, outputs, strict=True))
      )
    )

  def __call__(self, images: jax.Array, train: bool) -> jax.Array:
    """Map [B,H,W,C] to [B,H,W,out_channels], unbounded."""
    x, sizes = self.normalize(images), []
    for first, second in self.down:
      x = second(first(x, train), train)
      sizes.append(x.shape[1:3])
      x = pooling.max_pool(x)
    x = self.middle(x, train)
    for (first, second), size in zip(self.up, reversed(sizes), strict=True):
      x = jax.image.resize(x, (x.shape[0], *size, x.shape[3]), "bilinear")
      x = second(first(x, train), train)
    return x


def encoder_decoder(
  image_shape: tuple[int, int, int],
  out_channels: int,
  widths: tuple[int, ...] = (32, 64, 128),
  *,
  mean: tuple[float, ...] | None = None,
  std: tuple[float, ...] | None = None,
) -> ImageNetwork:
  """Make the encoder-decoder of the Input-Aware attack.

  The released code has two differences: a bias in each convolution, which
  batch normalisation cancels, and PyTorch's initial values, where these are
  Flax's.

  Args:
    image_shape: (H, W, C), H and W at least 2**steps. Sides that the steps do
      not divide are rounded down by the poolings and restored on the way back.
    out_channels: channels of the outputs: C for a trigger, 1 for a mask.
    widths: filters of each step down, in order, one a step. The paper's are
      (32, 64, 128) for CIFAR-10 and GTSRB and (16, 32) for MNIST.
    mean: per-channel mean of the images, for the first layer; zeros by
      default.
    std: likewise the standard deviation; ones by default.

  Returns:
    The network. Its outputs are raw: whoever uses it applies tanh.

  Raises:
    ValueError: an image is too small for the steps.
  """
  if min(image_shape[:2]) < 2 ** len(widths):
    raise ValueError(
      f"images must be at least {2 ** len(widths)} pixels wide and high for "
      f"{len(widths)} steps (got {image_shape[0]}x{image_shape[1]})"
    )
  channels = image_shape[2]
  return image_network_from_module(
    lambda rngs: EncoderDecoder(
      image_shape=image_shape,
      out_channels=out_channels,
      widths=widths,
      mean=mean or (0.0,) * channels,
      std=std or (1.0,) * channels,
      rngs=rngs,
    )
  )
