"""The trigger generators of BaN and cBaN."""

import jax
import jax.numpy as jnp
from flax import nnx

from bdjax.models.base import Generator, generator_from_module


class TriggerMLP(nnx.Module):
  """A network from noise, and for cBaN a one-hot target label, to a patch.

  The released cBaN code embeds 100 noise values and the label in 64 units
  each, then 128, 128 and 5*5*3 = 75 outputs with a sigmoid. This is that
  network with `width` for 64; BaN is the same without the label's half.
  Its dropout is left out: it only adds to the noise that the input already
  is, and the trigger of a finished run would not be the one trained. New is
  that the sigmoid's inputs are scaled to a root mean square of 3 in each
  patch: otherwise the first hundred steps drive all of them to one end, where
  the gradient is zero, and cBaN never learns to tell its labels apart.
  """

  _SCALE = 3.0

  def __init__(self, *, noise_dim, num_labels, size, channels, width, rngs):
    self.shape = (size, size, channels)
    self.noise = nnx.Linear(noise_dim, width, rngs=rngs)
    self.conditional = num_labels > 0
    if self.conditional:
      self.label = nnx.Linear(num_labels, width, rngs=rngs)
    fan_in = 2 * width if self.conditional else width
    self.hidden_1 = nnx.Linear(fan_in, 2 * width, rngs=rngs)
    self.hidden_2 = nnx.Linear(2 * width, 2 * width, rngs=rngs)
    self.patch = nnx.Linear(2 * width, size * size * channels, rngs=rngs)

  def __call__(self, noise: jax.Array, condition: jax.Array | None):
    """Compute patches float32 [B,s,s,C] in (0,1)."""
    # Centred, so that the first layer does not start with a common offset.
    x = nnx.relu(self.noise(2.0 * noise - 1.0))
    if self.conditional:
      x = jnp.concatenate([x, nnx.relu(self.label(condition))], axis=-1)
    x = nnx.relu(self.hidden_2(nnx.relu(self.hidden_1(x))))
    x = self.patch(x)
    x *= self._SCALE * jax.lax.rsqrt(
      jnp.square(x).mean(-1, keepdims=True) + 1e-6
    )
    return nnx.sigmoid(x).reshape(-1, *self.shape)


def trigger_mlp(
  *, noise_dim: int, num_labels: int, size: int, channels: int, width: int
) -> Generator:
  """Make a `Generator` of `size` x `size` patches.

  Args:
    noise_dim: length of the noise vector, at least 1.
    num_labels: length of the one-hot condition; 0 for none (BaN).
    size: side of the patch in pixels.
    channels: 1 or 3.
    width: units of the embedding; the hidden layers have twice as many.
  """
  return generator_from_module(
    lambda rngs: TriggerMLP(
      noise_dim=noise_dim,
      num_labels=num_labels,
      size=size,
      channels=channels,
      width=width,
      rngs=rngs,
    )
  )
