"""Convolutions of few input channels on CPU: those of the image.

A library's convolution is a matrix product underneath, and with one or three
channels its matrices are too thin to be fast. Here the output is a sum of
shifted images, each times a vector, where these are few, and the gradient by
the image one matrix product whose parts are shifted and summed. The gradient by
the kernel is left to the library. Measured by
`python -m benchmarks.convolution`.
"""

import jax
import jax.numpy as jnp
from jax import lax

from bdjax.models import chunks

_CHUNK = 16  # images at a time
Padding = tuple[tuple[int, int], tuple[int, int]]


def supports(kernel: jax.Array, strides: tuple, padding: Padding) -> bool:
  """Return whether `input_gradient` applies, and is faster than the library.

  Args:
    kernel: [h,w,C,K].
    strides: two ints.
    padding: `((top, bottom), (left, right))`.
  """
  height, width, channels, _ = kernel.shape
  return (
    channels <= 3
    and height * width <= 9
    and tuple(strides) == (1, 1)
    and all(0 <= p < height for p in padding[0])
    and all(0 <= p < width for p in padding[1])
  )


def is_faster(kernel: jax.Array) -> bool:
  """Return whether `convolve` is faster than the library.

  It is with few enough terms.

  Args:
    kernel: [h,w,C,K].
  """
  return kernel.size <= 600


def convolve(x: jax.Array, kernel: jax.Array, padding: Padding) -> jax.Array:
  """Convolve with stride 1, in value only (`conv.conv` has gradients).

  Args:
    x: float [B,H,W,C].
    kernel: float [h,w,C,K].
    padding: `((top, bottom), (left, right))`, each below the window's side.

  Returns:
    float [B,H',W',K].
  """
  h, w, channels, filters = kernel.shape
  height, width = (
    size + sum(pads) - window + 1
    for size, pads, window in zip(x.shape[1:3], padding, (h, w), strict=True)
  )
  rows = kernel.reshape(h, w, channels, 1, 1, 1, filters)

  def convolve_chunk(x):
    x = jnp.pad(x, ((0, 0), *padding, (0, 0)))
    return sum(
      x[:, i : i + height, j : j + width, c, None] * rows[i, j, c]
      for i in range(h)
      for j in range(w)
      for c in range(channels)
    )

  # A loop, because its results are stored: otherwise the compiler fuses the
  # sum with what follows, recomputes it for each value that a pooling reads,
  # and is ten times as slow.
  return chunks.join(
    lax.map(convolve_chunk, *chunks.cut([x], _CHUNK)), x.shape[0]
  )


def input_gradient(
  g: jax.Array, kernel: jax.Array, padding: Padding
) -> jax.Array:
  """Compute the gradient of `convolve` with respect to its input.

  Args:
    g: float [B,H',W',K], the gradient with respect to the output.
    kernel: float [h,w,C,K].
    padding: as of `convolve`.

  Returns:
    float [B,H,W,C].
  """
  h, w, channels, filters = kernel.shape
  parts = g @ kernel.reshape(-1, filters).T  # [B,H',W',h*w*C]
  pads = [
    (size - 1 - low, size - 1 - high)
    for size, (low, high) in zip((h, w), padding, strict=True)
  ]
  parts = jnp.pad(parts, ((0, 0), *pads, (0, 0)))
  height, width = parts.shape[1] - h + 1, parts.shape[2] - w + 1
  parts = parts.reshape(*parts.shape[:3], h, w, channels)
  return sum(
    parts[:, h - 1 - i :, w - 1 - j :, i, j][:, :height, :width]
    for i in range(h)
    for j in range(w)
  )
