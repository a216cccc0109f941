"""The networks of `bdjax.models` in plain Flax Linen."""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp


class CNN(nn.Module):
  """Two pooled convolutions and a hidden layer."""

  classes: int
  width: int
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x, train: bool):
    """Compute logits [B,K] of images [B,H,W,C] in [0,1]."""
    del train
    for filters in (self.width // 4, self.width // 2):
      x = nn.relu(nn.Conv(filters, (3, 3), dtype=self.dtype)(x))
      x = nn.max_pool(x, (2, 2), strides=(2, 2))
    x = x.reshape(len(x), -1)
    x = nn.relu(nn.Dense(2 * self.width, dtype=self.dtype)(x))
    return nn.Dense(self.classes, dtype=self.dtype)(x)


class Block(nn.Module):
  """The basic residual block."""

  filters: int
  stride: int
  dtype: Any

  @nn.compact
  def __call__(self, x, train: bool):
    """Map [B,H,W,C] to [B,H/stride,W/stride,filters]."""

    def conv(x, window, stride):
      return nn.Conv(
        self.filters,
        (window, window),
        strides=stride,
        padding=(window - 1) // 2,
        use_bias=False,
        dtype=self.dtype,
      )(x)

    def norm(x):
      return nn.BatchNorm(not train, momentum=0.9, dtype=self.dtype)(x)

    y = nn.relu(norm(conv(x, 3, self.stride)))
    y = norm(conv(y, 3, 1))
    if x.shape != y.shape:
      x = norm(conv(x, 1, self.stride))
    return nn.relu(x + y)


class ResNet18(nn.Module):
  """ResNet-18 with the stem for small images."""

  classes: int
  width: int
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x, train: bool):
    """Compute logits [B,K] of images [B,H,W,C] in [0,1]."""
    x = nn.Conv(self.width, (3, 3), use_bias=False, dtype=self.dtype)(x)
    x = nn.relu(nn.BatchNorm(not train, momentum=0.9, dtype=self.dtype)(x))
    for stage in range(4):
      for index in range(2):
        stride = 2 if stage and not index else 1
        x = Block(self.width * 2**stage, stride, self.dtype)(x, train)
    return nn.Dense(self.classes, dtype=self.dtype)(x.mean((1, 2)))


NETWORKS = {"cnn": CNN, "resnet18": ResNet18}


def make(case: Any, classes: int) -> nn.Module:
  """Make the network of a `script.Case`."""
  dtype = jnp.bfloat16 if case.bf16 else jnp.float32
  return NETWORKS[case.model](classes, case.width, dtype)


@functools.cache
def forward_operations(case: Any, classes: int) -> float:
  """Count the operations of a forward pass of one image, by XLA.

  Of this network, whose convolutions are `lax`'s: the textbook algorithm's.

  Returns:
    Floating-point operations, a multiplication and an addition being two.
  """
  net = make(case._replace(bf16=False), classes)
  image = jnp.zeros((1, *case.shape))
  variables = jax.eval_shape(
    lambda: net.init(jax.random.key(0), image, train=False)
  )

  def forward(variables, image):
    return net.apply(variables, image, train=False)

  return jax.jit(forward).lower(variables, image).cost_analysis()["flops"]
