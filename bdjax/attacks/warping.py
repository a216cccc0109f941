"""Smooth fields of displacements, and images warped by them."""

import jax
import jax.numpy as jnp
import numpy as np


def bicubic_weights(size: int, points: int) -> np.ndarray:
  """Return the matrix that interpolates control points along one axis.

  Keys' cubic convolution with a = -0.75, ends aligned with ends and indices
  beyond the ends clamped: PyTorch's `bicubic` with `align_corners=True`
  (`jax.image.resize` has a = -0.5 and pixel centres).

  Args:
    size: of the axis, in pixels.
    points: control points along it, at least 2.

  Returns:
    float32 [size,points]; rows add up to 1.
  """
  a = -0.75
  place = np.linspace(0, points - 1, size)
  first = np.floor(place).astype(int)
  weights = np.zeros((size, points))
  for offset in (-1, 0, 1, 2):
    x = np.abs(place - first - offset)
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = a * (((x - 5) * x + 8) * x - 4)
    column = np.clip(first + offset, 0, points - 1)
    np.add.at(weights, (np.arange(size), column), np.where(x <= 1, near, far))
  return weights.astype(np.float32)


def identity_grid(height: int, width: int) -> jax.Array:
  """Return the coordinates (x, y) of each pixel in [-1,1]: [H,W,2]."""
  x, y = jnp.meshgrid(jnp.linspace(-1, 1, width), jnp.linspace(-1, 1, height))
  return jnp.stack([x, y], -1)


def sample(images: jax.Array, grid: jax.Array) -> jax.Array:
  """Sample images bilinearly at the points of a grid.

  As PyTorch's `grid_sample` with `align_corners=True`.

  Args:
    images: float32 [B,H,W,C].
    grid: float32 [B,H,W,2], (x, y) in [-1,1], the ends being the centres of
      the outermost pixels.

  Returns:
    float32 [B,H,W,C].
  """
  batch, height, width, channels = images.shape
  x = (grid[..., 0] + 1) / 2 * (width - 1)
  y = (grid[..., 1] + 1) / 2 * (height - 1)
  left = jnp.clip(jnp.floor(x), 0, width - 2)
  top = jnp.clip(jnp.floor(y), 0, height - 2)
  across, down = (x - left)[..., None], (y - top)[..., None]
  left, top = left.astype(jnp.int32), top.astype(jnp.int32)
  pixels = images.reshape(batch, height * width, channels)

  def at(rows, cols):
    index = (rows * width + cols).reshape(batch, -1, 1)
    return jnp.take_along_axis(pixels, index, 1).reshape(images.shape)

  upper = at(top, left) * (1 - across) + at(top, left + 1) * across
  lower = at(top + 1, left) * (1 - across) + at(top + 1, left + 1) * across
  return upper * (1 - down) + lower * down
