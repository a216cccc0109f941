"""ResNet-18 for small images, and a smaller one.

References:
  He, Zhang, Ren and Sun, 2016, Deep Residual Learning for Image Recognition.
"""

import functools

import jax
import jax.numpy as jnp
from flax import nnx

from bdjax.models import conv
from bdjax.models.base import Norm, Structure, Tap
from bdjax.models.classifier import Classifier, Normalize
from bdjax.models.spec import ModelSpec


def _conv(fan_in, fan_out, window, stride, *, dtype, rngs):
  return nnx.Conv(
    fan_in,
    fan_out,
    (window, window),
    strides=(stride, stride),
    padding=(window - 1) // 2,
    use_bias=False,
    kernel_init=nnx.initializers.kaiming_normal(),
    dtype=dtype,
    conv_general_dilated=conv.conv,
    rngs=rngs,
  )


class Block(nnx.Module):
  """The basic residual block: two 3x3 convolutions and a shortcut."""

  def __init__(self, fan_in, fan_out, stride, *, dtype, rngs):
    convolution = functools.partial(_conv, dtype=dtype, rngs=rngs)
    norm = functools.partial(
      nnx.BatchNorm, fan_out, momentum=0.9, dtype=dtype, rngs=rngs
    )
    self.conv_1 = convolution(fan_in, fan_out, 3, stride)
    self.norm_1 = norm()
    self.conv_2 = convolution(fan_out, fan_out, 3, 1)
    self.norm_2 = norm()
    self.projects = stride != 1 or fan_in != fan_out
    if self.projects:
      self.shortcut = convolution(fan_in, fan_out, 1, stride)
      self.shortcut_norm = norm()

  def __call__(self, x, train, tap, name):
    """Map [B,H,W,fan_in] to [B,H/stride,W/stride,fan_out]."""
    average = not train
    y = nnx.relu(self.norm_1(self.conv_1(x), use_running_average=average))
    y = tap(f"{name}.conv_1", y)
    y = self.norm_2(self.conv_2(y), use_running_average=average)
    if self.projects:
      x = self.shortcut_norm(self.shortcut(x), use_running_average=average)
    return tap(name, nnx.relu(x + y))

  def norms(self) -> list[tuple[str, str]]:
    """List the normalisation layers, each with its convolution."""
    names = [("norm_1", "conv_1"), ("norm_2", "conv_2")]
    return names + [("shortcut_norm", "shortcut")] * self.projects


class ResNet18(Classifier):
  """ResNet-18: stem, four stages of two blocks, average pool, linear layer.

  `stem='cifar'`: 3x3, no pooling; 11,173,962 parameters for ten classes and
  width 64. `stem='imagenet'`: torchvision's 7x7 with stride 2 and 3x3 max
  pool; 11,181,642.
  """

  head_inputs = ("logits",)
  blocks_per_stage = 2

  def __init__(
    self, *, image_shape, num_classes, mean, std, dtype, width, stem, rngs
  ):
    self.normalize = Normalize(mean, std)
    window, stride = (7, 2) if stem == "imagenet" else (3, 1)
    self.pool = stem == "imagenet"
    self.stem = _conv(
      image_shape[2], width, window, stride, dtype=dtype, rngs=rngs
    )
    self.stem_norm = nnx.BatchNorm(width, momentum=0.9, dtype=dtype, rngs=rngs)
    blocks, fan_in = [], width
    for stage in range(4):
      for index in range(self.blocks_per_stage):
        stride = 2 if stage and not index else 1
        fan_out = width * 2**stage
        blocks.append(Block(fan_in, fan_out, stride, dtype=dtype, rngs=rngs))
        fan_in = fan_out
    self.blocks = nnx.List(blocks)
    self.logits = nnx.Linear(fan_in, num_classes, dtype=dtype, rngs=rngs)

  def features(self, images: jax.Array, train: bool, tap: Tap) -> jax.Array:
    """Compute the last block's output, [B,H/8,W/8,8*width]."""
    x = self.stem(self.normalize(images))
    x = nnx.relu(self.stem_norm(x, use_running_average=not train))
    if self.pool:
      x = nnx.max_pool(x, (3, 3), (2, 2), padding=((1, 1), (1, 1)))
    x = tap("stem", x)
    for i, block in enumerate(self.blocks):
      x = block(x, train, tap, f"blocks.{i}")
    return x

  def head_linear(self, x: jax.Array) -> jax.Array:
    """Compute logits [B,K] of features: all of the head is linear."""
    return self.logits(x.mean((1, 2), dtype=jnp.float32))

  def head_rest(self, x: jax.Array) -> jax.Array:
    """Return the logits unchanged."""
    return x

  def structure(self) -> Structure:
    """Return the four stages, without the stem."""
    norms = [Norm.at(("stem_norm",), ("stem",))]
    biases = {"stem": ("stem_norm", "bias")}
    for i, block in enumerate(self.blocks):
      for norm, convolution in block.norms():
        norms.append(Norm.at(("blocks", i, norm), ("blocks", i, convolution)))
      biases[f"blocks.{i}.conv_1"] = ("blocks", i, "norm_1", "bias")
      biases[f"blocks.{i}"] = ("blocks", i, "norm_2", "bias")
    last = range(self.blocks_per_stage - 1, len(self.blocks))
    stages = tuple(f"blocks.{i}" for i in last[:: self.blocks_per_stage])
    return Structure(stages, tuple(norms), biases)


class ResNet10(ResNet18):
  """ResNet-18 with one block a stage, for CPUs.

  Not in the paper. With `stem='cifar'` 4,903,242 parameters for ten classes
  and width 64, and 46% of ResNet-18's multiplications.
  """

  blocks_per_stage = 1


_OPTIONS = ("width", "stem")
_LAST_BLOCK = "blocks.7.conv_1.kernel"  # of ResNet-18
RESNET10 = ModelSpec(
  ResNet10,
  _OPTIONS,
  kernel="stem.kernel",
  has=("blocks.3.conv_1.kernel",),
  lacks=(_LAST_BLOCK,),
)
RESNET18 = ModelSpec(
  ResNet18, _OPTIONS, kernel="stem.kernel", has=(_LAST_BLOCK,)
)
