"""AirBench, a small network for CIFAR-10 that trains fast.

A frozen whitening layer, three groups of two convolutions, batch normalisation
without scale, GELU, and a linear head whose output is scaled down.

References:
  Jordan, 2024, 94% on CIFAR-10 in 3.29 Seconds on a Single GPU, section 3.
"""

import functools

import jax
import jax.numpy as jnp
from flax import nnx

from bdjax.models import conv, pooling
from bdjax.models.base import Norm, Structure, Tap
from bdjax.models.classifier import Classifier, Normalize
from bdjax.models.spec import ModelSpec

SMALLEST_SIDE = 9  # pixels; with fewer the third pooling leaves nothing
_LOGIT_SCALE = 1 / 9


def _kernel_init(key, shape, dtype):
  """Draw PyTorch's default, and makes the first filters the identity.

  Section 3, Identity initialization.
  """
  fan_in = shape[0] * shape[1] * shape[2]
  limit = fan_in**-0.5
  kernel = jax.random.uniform(key, shape, dtype, -limit, limit)
  through = min(shape[2:])
  kernel = kernel.at[..., :through].set(0.0)
  same = jnp.arange(through)
  return kernel.at[1, 1, same, same].set(1.0)


class Whitening(nnx.Module):
  """2x2 convolution whose filters whiten the patches of the training images.

  It has twice as many filters as a patch has values: the eigenvectors of the
  patches' covariance, each divided by the root of its eigenvalue plus 5e-4, and
  their negatives (section 3, Frozen patch-whitening initialization). The kernel
  is a statistic of the data, not a parameter: training does not change it.
  """

  def __init__(self, channels, dtype):
    self.size = 4 * channels
    self.dtype = dtype
    identity = jnp.eye(self.size)
    self.kernel = nnx.BatchStat(self._filters(identity, jnp.ones(self.size)))

  def _filters(self, vectors, values):
    """Make filters [2,2,C,2P] of eigenvectors [P,P] (columns) and values."""
    scaled = vectors / jnp.sqrt(values + 5e-4)[None, :]
    both = jnp.concatenate([scaled, -scaled], 1)
    return both.reshape(2, 2, self.size // 4, 2 * self.size)

  def fit(self, images):
    """Fit the filters to normalised images f32 [N,H,W,C]."""
    views = [
      images[:, i : images.shape[1] - 1 + i, j : images.shape[2] - 1 + j]
      for i in (0, 1)
      for j in (0, 1)
    ]
    patches = jnp.concatenate(views, -1).reshape(-1, self.size)
    covariance = patches.T @ patches / patches.shape[0]
    values, vectors = jnp.linalg.eigh(covariance)
    self.kernel[...] = self._filters(vectors, values)

  def __call__(self, x):
    """Map [B,H,W,C] to [B,H-1,W-1,8C]."""
    return conv.conv(
      x.astype(self.dtype),
      self.kernel[...].astype(self.dtype),
      (1, 1),
      "VALID",
      dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


class Group(nnx.Module):
  """Two convolutions, the first pooled."""

  def __init__(self, fan_in, fan_out, *, dtype, rngs):
    convolution = functools.partial(
      nnx.Conv,
      kernel_size=(3, 3),
      padding="SAME",
      use_bias=False,
      kernel_init=_kernel_init,
      dtype=dtype,
      conv_general_dilated=conv.conv,
      rngs=rngs,
    )
    norm = functools.partial(
      nnx.BatchNorm,
      fan_out,
      momentum=0.6,
      use_scale=False,
      dtype=dtype,
      rngs=rngs,
    )
    self.conv_1 = convolution(fan_in, fan_out)
    self.norm_1 = norm()
    self.conv_2 = convolution(fan_out, fan_out)
    self.norm_2 = norm()

  def __call__(self, x, train, tap, name):
    """Map [B,H,W,fan_in] to [B,H//2,W//2,fan_out]."""
    average = not train
    x = pooling.max_pool(self.conv_1(x))
    x = nnx.gelu(self.norm_1(x, use_running_average=average))
    x = self.conv_2(tap(f"{name}.conv_1", x))
    x = nnx.gelu(self.norm_2(x, use_running_average=average))
    return tap(f"{name}.conv_2", x)


class AirBench(Classifier):
  """Whitening, groups of 64, 256 and 256 channels, global max pool, linear.

  1,971,328 parameters for 32x32x3 images and ten classes. It differs from the
  paper in that the whitening layer has no bias, GELU is its approximation by
  tanh, and the head's first weights and batch normalisation's epsilon are
  Flax's own.
  """

  head_inputs = ("logits",)

  def __init__(
    self, *, image_shape, num_classes, mean, std, dtype, width, rngs
  ):
    self.normalize = Normalize(mean, std)
    self.stem = Whitening(image_shape[2], dtype)
    widths = (8 * image_shape[2], width, 4 * width, 4 * width)
    self.groups = nnx.List(
      Group(fan_in, fan_out, dtype=dtype, rngs=rngs)
      for fan_in, fan_out in zip(widths[:-1], widths[1:], strict=True)
    )
    self.logits = nnx.Linear(
      widths[-1], num_classes, use_bias=False, dtype=dtype, rngs=rngs
    )

  def prepare(self, images: jax.Array) -> None:
    """Fit the whitening to training images f32 [N,H,W,C] in [0,1]."""
    self.stem.fit(self.normalize(images))

  def features(self, images: jax.Array, train: bool, tap: Tap) -> jax.Array:
    """Compute the last convolution's output, [B,H//8,W//8,4*width]."""
    x = tap("stem", nnx.gelu(self.stem(self.normalize(images))))
    for i, group in enumerate(self.groups):
      x = group(x, train, tap, f"groups.{i}")
    return x

  def head_linear(self, x: jax.Array) -> jax.Array:
    """Compute the linear layer's sums [B,K] of features."""
    return self.logits(x.max((1, 2)))

  def head_rest(self, sums: jax.Array) -> jax.Array:
    """Scale the linear layer's sums to logits [B,K]."""
    return _LOGIT_SCALE * sums

  def structure(self) -> Structure:
    """Return the groups as stages; GELU leaves no bias that silences."""
    norms = tuple(
      Norm.at(("groups", i, f"norm_{n}"), ("groups", i, f"conv_{n}"))
      for i in range(len(self.groups))
      for n in (1, 2)
    )
    stages = tuple(f"groups.{i}.conv_2" for i in range(len(self.groups)))
    return Structure(stages, norms)


SPEC = ModelSpec(
  AirBench,
  smallest_side=SMALLEST_SIDE,
  kernel="groups.0.conv_1.kernel",
  has=("groups.0.conv_1.kernel",),
)
