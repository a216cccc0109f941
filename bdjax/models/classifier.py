"""The base class of the networks."""

import jax
import jax.numpy as jnp
from flax import nnx

from bdjax.models.base import Structure, Tap


class Normalize(nnx.Module):
  """Per-channel normalisation, `(x - mean) / std`, constant under training.

  The moments are numbers of the definition, not variables: they are part of
  what the model is, so a checkpoint cannot disagree with them.
  """

  def __init__(self, mean: tuple[float, ...], std: tuple[float, ...]):
    self.mean = tuple(mean)
    self.std = tuple(std)

  def __call__(self, images: jax.Array) -> jax.Array:
    """Normalise float32 [...,C]."""
    shape = (1,) * (images.ndim - 1) + (-1,)
    mean = jnp.asarray(self.mean, images.dtype).reshape(shape)
    std = jnp.asarray(self.std, images.dtype).reshape(shape)
    return (images - mean) / std


class Classifier(nnx.Module):
  """A network of convolutional features and a head in two parts.

  The head is `head_rest(head_linear(features))`, see `base.SplitHead`. A
  network without such parts has a `head` of its own and no `head_inputs`.

  Attributes:
    head_inputs: the layers of `head_linear`, linear ones and convolutions, by
      name. Their inputs are the features, a linear layer's flattened channels
      last.
  """

  head_inputs: tuple[str, ...] = ()

  def features(self, images: jax.Array, train: bool, tap: Tap) -> jax.Array:
    """Compute the last convolution's output [B,h,w,c]."""
    raise NotImplementedError

  def head_linear(self, x: jax.Array):
    """Compute the head's sums over channels, a tree of [B,...]."""
    raise NotImplementedError

  def head_rest(self, sums) -> jax.Array:
    """Compute logits [B,K] of the head's sums over channels."""
    raise NotImplementedError

  def head(self, x: jax.Array) -> jax.Array:
    """Compute logits [B,K] of features."""
    return self.head_rest(self.head_linear(x))

  def prepare(self, images: jax.Array) -> None:
    """Fit layers to images of the training set, f32 [N,H,W,C] in [0,1]."""

  def structure(self) -> Structure:
    """Return the stages, normalisation layers and biases."""
    raise NotImplementedError
