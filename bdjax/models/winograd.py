"""3x3 convolutions by Winograd's minimal filtering, F(4x4, 3x3).

A tile of 4x4 outputs needs 36 products in place of 144,

  Y = A^T ((G g G^T) * (B^T d B)) A,

with the kernel g, the 6x6 input tile d and the elementwise product, summed
over the input's channels: 36 matrix products, each tiles x C by C x K. A CPU
computes these near its peak, and a direct convolution far from it.
Float32 only: the transforms cost about two decimal digits.

References:
  Lavin and Gray, 2016, Fast Algorithms for Convolutional Neural Networks.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from bdjax.models import chunks

_M = 4  # outputs of a tile, per side
_T = 6  # its inputs, _M + 3 - 1
_INPUT = np.array(  # B^T
  [
    [4, 0, -5, 0, 1, 0],
    [0, -4, -4, 1, 1, 0],
    [0, 4, -4, -1, 1, 0],
    [0, -2, -1, 2, 1, 0],
    [0, 2, -1, -2, 1, 0],
    [0, 4, 0, -5, 0, 1],
  ]
)
_KERNEL = np.array(  # G
  [
    [1 / 4, 0, 0],
    [-1 / 6, -1 / 6, -1 / 6],
    [-1 / 6, 1 / 6, -1 / 6],
    [1 / 24, 1 / 12, 1 / 6],
    [1 / 24, -1 / 12, 1 / 6],
    [0, 0, 1],
  ]
)
_OUTPUT = np.array(  # A^T
  [
    [1, 1, 1, 1, 1, 0],
    [0, 1, -1, 2, -2, 0],
    [0, 1, 1, 4, 4, 0],
    [0, 1, -1, 8, -8, 1],
  ]
)
# Tiles at a time: the arrays between the transforms stay in the cache, while
# each of the 36 products is large enough to be shared by the cores (XLA:CPU
# gives less than some 3e6 multiplications to one).
_TILES = 320
_MULTIPLICATIONS = 5 << 20

Padding = tuple[tuple[int, int], tuple[int, int]]


def _combine(matrix, parts):
  """Multiply a small constant matrix by a list of arrays; skips zeros."""
  rows = []
  for row in matrix.tolist():
    terms = [c * x for c, x in zip(row, parts, strict=True) if c]
    rows.append(functools.reduce(jnp.add, terms))
  # A barrier: fused with the next transform, this one would be recomputed for
  # each of its terms.
  return lax.optimization_barrier(jnp.stack(rows))


def _input_tiles(x, nh, nw):
  """Map [N,4nh+2,4nw+2,C] to B^T d B of every tile, [36,N*nh*nw,C]."""
  rows = [x[:, i : i + _M * (nh - 1) + 1 : _M] for i in range(_T)]
  rows = _combine(_INPUT, rows)  # [6,N,nh,4nw+2,C]
  cols = [rows[:, :, :, j : j + _M * (nw - 1) + 1 : _M] for j in range(_T)]
  return _combine(_INPUT, cols).reshape(_T * _T, -1, x.shape[-1])


def _output(products, n, nh, nw):
  """Join A^T m A of every tile: [36,N*nh*nw,K] to [N,4nh,4nw,K]."""
  m = products.reshape(_T, _T, n, nh, nw, -1)  # the column first
  cols = _combine(_OUTPUT, list(m))  # [4,6,N,nh,nw,K]
  y = _combine(_OUTPUT, [cols[:, i] for i in range(_T)])  # [4,4,N,nh,nw,K]
  return y.transpose(2, 3, 0, 4, 1, 5).reshape(n, _M * nh, _M * nw, -1)


def _gradient_tiles(g):
  """Transpose `_output`: [N,4nh,4nw,K] to A g A^T, [36,N*nh*nw,K]."""
  n, height, width, k = g.shape
  g = g.reshape(n, height // _M, _M, width // _M, _M, k)
  rows = _combine(_OUTPUT.T, [g[:, :, i] for i in range(_M)])
  cols = _combine(_OUTPUT.T, [rows[..., j, :] for j in range(_M)])
  return cols.reshape(_T * _T, -1, k)


def _transform_kernel(kernel):
  """Map [3,3,C,K] to G g G^T of every pair of channels, [36,C,K]."""
  rows = _combine(_KERNEL, list(kernel))  # [6,3,C,K]
  cols = _combine(_KERNEL, [rows[:, j] for j in range(3)])
  return cols.reshape(_T * _T, *kernel.shape[2:])


def _kernel_gradient(products):
  """Transpose `_transform_kernel`: [36,C,K] to [3,3,C,K]."""
  u = products.reshape(_T, _T, *products.shape[1:])
  cols = _combine(_KERNEL.T, list(u))  # [3 (column),6,C,K]
  return _combine(_KERNEL.T, [cols[:, i] for i in range(_T)])


def _out_size(size, pads):
  return size + sum(pads) - 2


def _tiles(sizes, padding):
  """Return the tiles in both directions, and the padding that fills them."""
  counts = [
    -(-_out_size(size, pads) // _M)
    for size, pads in zip(sizes, padding, strict=True)
  ]
  pads = [
    (low, _M * count + 2 - size - low)
    for count, size, (low, _) in zip(counts, sizes, padding, strict=True)
  ]
  return *counts, ((0, 0), *pads, (0, 0))


def _images_per_chunk(tiles, channels, filters):
  return max(_TILES, _MULTIPLICATIONS // (channels * filters)) // tiles


def supports(
  x: jax.Array, kernel: jax.Array, strides: tuple, padding: Padding
) -> bool:
  """Return whether `convolve` and `kernel_gradient` apply.

  Args:
    x: [N,H,W,C].
    kernel: [h,w,C,K].
    strides: two ints.
    padding: `((top, bottom), (left, right))`.
  """
  return (
    kernel.shape[:2] == (3, 3)
    and tuple(strides) == (1, 1)
    and all(0 <= p <= 2 for pads in padding for p in pads)
    and x.dtype == kernel.dtype == jnp.float32
  )


def is_faster(x: jax.Array, kernel: jax.Array) -> bool:
  """Return whether `convolve` is faster than a direct convolution on CPU.

  Measured by `python -m benchmarks.convolution`: with fewer channels the
  transforms cost what the products save, with few tiles the kernel's transform
  does.

  Args:
    x: [N,H,W,C].
    kernel: [3,3,C,K].
  """
  n, height, width, _ = x.shape
  return min(kernel.shape[2:]) >= 64 and n * height * width >= 32 * _M**2


def convolve(x: jax.Array, kernel: jax.Array, padding: Padding) -> jax.Array:
  """Convolve by 3x3 with stride 1, in value only (`conv.conv` has gradients).

  Args:
    x: float32 [N,H,W,C].
    kernel: float32 [3,3,C,K].
    padding: `((top, bottom), (left, right))`, 0 to 2 each.

  Returns:
    float32 [N,H',W',K], equal to `lax.conv_general_dilated` to about 1e-5 of
    its largest value.
  """
  n, *sizes, _ = x.shape
  height, width = map(_out_size, sizes, padding)
  nh, nw, pads = _tiles(sizes, padding)
  size = _images_per_chunk(nh * nw, *kernel.shape[2:])
  kernel = _transform_kernel(kernel)

  def convolve_chunk(x):
    # Padded here, in the cache: before the loop it takes as long as the rest.
    tiles = _input_tiles(jnp.pad(x, pads), nh, nw)
    products = jnp.matmul(tiles, kernel)
    return _output(products, len(x), nh, nw)[:, :height, :width]

  return chunks.join(lax.map(convolve_chunk, *chunks.cut([x], size)), n)


def kernel_gradient(x: jax.Array, g: jax.Array, padding: Padding) -> jax.Array:
  """Compute the gradient of `convolve` with respect to its kernel.

  Args:
    x: float32 [N,H,W,C].
    g: float32 [N,H',W',K], the gradient with respect to the output.
    padding: as of `convolve`.

  Returns:
    float32 [3,3,C,K].
  """
  nh, nw, pads = _tiles(x.shape[1:3], padding)
  fill = ((0, 0), (0, _M * nh - g.shape[1]), (0, _M * nw - g.shape[2]), (0, 0))
  size = _images_per_chunk(nh * nw, x.shape[-1], g.shape[-1])

  def add_chunk(total, chunk):
    x, g = chunk
    tiles = _input_tiles(jnp.pad(x, pads), nh, nw).swapaxes(1, 2)
    return total + jnp.matmul(tiles, _gradient_tiles(jnp.pad(g, fill))), None

  zero = jnp.zeros((_T * _T, x.shape[-1], g.shape[-1]), x.dtype)
  total, _ = lax.scan(add_chunk, zero, chunks.cut([x, g], size))
  return _kernel_gradient(total)
