"""Sizes of a network, computed without allocating any of its arrays."""

import jax
import jax.numpy as jnp
import numpy as np

from bdjax.models.base import ImageNetwork, Model


def layers(model: Model, image_shape: tuple[int, int, int]) -> dict[str, int]:
  """Count the channels of each convolutional layer.

  Args:
    model: the model.
    image_shape: (H, W, C).

  Returns:
    Layer -> channels, in forward order. The last layer's output is what
    `model.features` gives.
  """
  channels = {}

  def tap(layer, x):
    channels[layer] = x.shape[-1]
    return x

  def run(key):
    images = jnp.zeros((1, *image_shape))
    return model.apply(*model.init(key), images, tap=tap)

  jax.eval_shape(run, jax.random.key(0))
  return channels


def count_parameters(model: Model | ImageNetwork) -> int:
  """Count the trainable scalars."""
  params, _ = jax.eval_shape(model.init, jax.random.key(0))
  return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(params))
