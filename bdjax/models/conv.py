"""A convolution that is fast on the backend in use.

XLA:CPU sends a convolution to its fast kernel only in the layout NHWC x HWIO
-> NHWC. The gradients that JAX derives ask for other layouts; outside loops a
compiler pass rewrites them, inside `lax.scan` it does not, and a training
step is 50 times slower there (jax issue 12868). So on CPU the gradients are
written out here, in the canonical layout, and convolutions of very few and of
many channels have algorithms of their own. Other backends use `lax`.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax

from bdjax.models import chunks, conv_few_channels, winograd

_CANONICAL = ("NHWC", "HWIO", "NHWC")
_CHUNK_BYTES = 4 << 20  # of images whose gradients are summed


def _lax_conv(x, kernel, strides, padding, dilation=(1, 1)):
  return lax.conv_general_dilated(
    x,
    kernel,
    strides,
    padding,
    rhs_dilation=dilation,
    dimension_numbers=_CANONICAL,
  )


def _fast_conv(x, kernel, strides, padding):
  """Convolve by the algorithm that is fastest on CPU."""
  if conv_few_channels.supports(
    kernel, strides, padding
  ) and conv_few_channels.is_faster(kernel):
    return conv_few_channels.convolve(x, kernel, padding)
  if _by_winograd(x, kernel, strides, padding):
    return winograd.convolve(x, kernel, padding)
  return _lax_conv(x, kernel, strides, padding)


def _by_winograd(x, kernel, strides, padding):
  return winograd.supports(x, kernel, strides, padding) and winograd.is_faster(
    x, kernel
  )


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def canonical_conv(x, kernel, strides, padding):
  """Convolve in 2-D, with gradients that are canonical convolutions too.

  Equals `lax.conv_general_dilated` in value and in gradient up to rounding.

  Args:
    x: float [B,H,W,C].
    kernel: float [h,w,C,K].
    strides: two ints.
    padding: `((top, bottom), (left, right))`, not negative.

  Returns:
    float [B,H',W',K].
  """
  return _fast_conv(x, kernel, strides, padding)


def _forward(x, kernel, strides, padding):
  return _fast_conv(x, kernel, strides, padding), (x, kernel)


def _backward(strides, padding, residuals, g):
  x, kernel = residuals
  if conv_few_channels.supports(kernel, strides, padding):
    dx = conv_few_channels.input_gradient(g, kernel, padding)
  else:
    dx = _input_gradient(g, kernel, strides, padding, x.shape[1:3])
  if _by_winograd(x, kernel, strides, padding):
    return dx, winograd.kernel_gradient(x, g, padding)
  return dx, _kernel_gradient(x, g, strides, padding, kernel.shape[:2])


def _input_gradient(g, kernel, strides, padding, sizes):
  """Compute the gradient with respect to an input of `sizes` rows, columns.

  Row r of the input contributes to output o by row i of the kernel where
  o stride + i - low = r. So rows with the same remainder by the stride meet
  only every stride-th row of the kernel: for each of these phases a convolution
  of stride 1, in place of one over a gradient that is mostly zeros.
  """
  rows, columns = (
    _phases(sizes[i], kernel.shape[i], g.shape[1 + i], strides[i], padding[i])
    for i in (0, 1)
  )
  parts = [
    jnp.stack(
      [_phase(g, kernel, strides, row, column) for column in columns], 3
    )
    for row in rows
  ]
  dx = jnp.stack(parts, 2)  # [B,H/s,s,W/t,t,C]
  n, height, s, width, t, channels = dx.shape
  dx = dx.reshape(n, height * s, width * t, channels)
  return dx[:, : sizes[0], : sizes[1]]


def _phases(size, window, out, stride, padding):
  """Return the kernel's first row and the gradient's padding, by remainder."""
  count = -(-size // stride)
  phases = []
  for remainder in range(stride):
    skipped, first = divmod(remainder + padding[0], stride)
    taps = len(range(first, window, stride))
    phases.append((first, (taps - 1 - skipped, count + skipped - out)))
  return phases


def _phase(g, kernel, strides, row, column):
  """Compute every stride-th row and column of the input's gradient."""
  (first_row, rows), (first_column, columns) = row, column
  part = kernel[first_row :: strides[0], first_column :: strides[1]]
  part, pads = part[::-1, ::-1].transpose(0, 1, 3, 2), (rows, columns)
  if not part.size:
    sizes = [g.shape[1 + i] + sum(pads[i]) - part.shape[i] + 1 for i in (0, 1)]
    return jnp.zeros((g.shape[0], *sizes, kernel.shape[2]), g.dtype)
  # Rows beyond the gradient are cut off first: jaxlib 0.10.2 computes
  # some convolutions with negative padding wrongly on CPU.
  cut = [(min(0, low), min(0, high), 0) for low, high in pads]
  g = lax.pad(g, jnp.zeros((), g.dtype), ((0, 0, 0), *cut, (0, 0, 0)))
  pads = tuple((max(0, low), max(0, high)) for low, high in pads)
  return _fast_conv(g, part, (1, 1), pads)


def _kernel_gradient(x, g, strides, padding, window):
  """Compute the gradient with respect to a kernel of `window` rows, columns.

  The batch has the role of the channels, [C,H,W,B] * [H',W',B -> K]. A chunk
  of images at a time: transposed all at once, they do not fit the cache, and
  the compiler would recompute their producers out of order.
  """
  if window == (1, 1) and not any(map(any, padding)):
    x = x[:, :: strides[0], :: strides[1]]
    return jnp.einsum("bhwc,bhwk->ck", x, g)[None, None]
  pads = []
  for i in (0, 1):
    low = padding[i][0]
    reach = (g.shape[1 + i] - 1) * strides[i] + window[i]
    pads.append((low, reach - x.shape[1 + i] - low))

  def add_chunk(total, chunk):
    x, g = chunk
    dk = _lax_conv(
      x.transpose(3, 1, 2, 0), g.transpose(1, 2, 0, 3), (1, 1), pads, strides
    )
    return total + dk, None

  image = max(x[0].size, g[0].size) * x.dtype.itemsize
  parts = chunks.cut([x, g], _CHUNK_BYTES // image)
  zero = jnp.zeros((x.shape[3], *window, g.shape[3]), x.dtype)
  total, _ = lax.scan(add_chunk, zero, parts)
  return total.transpose(1, 2, 0, 3)


canonical_conv.defvjp(_forward, _backward)


def conv(lhs, rhs, window_strides, padding, **kwargs):
  """Compute `lax.conv_general_dilated`, fast on this backend; for `nnx.Conv`.

  Arguments and result are those of `lax.conv_general_dilated`. Cases that the
  models here do not use (groups, dilation, other layouts) are left to `lax`.
  """
  if jax.default_backend() != "cpu" or not _is_plain(lhs, rhs, **kwargs):
    return lax.conv_general_dilated(lhs, rhs, window_strides, padding, **kwargs)
  strides = tuple(window_strides)
  if isinstance(padding, str):
    pads = lax.padtype_to_pads(lhs.shape[1:3], rhs.shape[:2], strides, padding)
  else:
    pads = padding
  return canonical_conv(lhs, rhs, strides, tuple(tuple(p) for p in pads))


def _is_plain(
  lhs,
  rhs,
  lhs_dilation=None,
  rhs_dilation=None,
  dimension_numbers=None,
  **kwargs,
):
  """Return whether `canonical_conv` computes the same."""
  if lhs.ndim != 4 or dimension_numbers is None:
    return False
  shapes = lhs.shape, rhs.shape
  asked = lax.conv_dimension_numbers(*shapes, dimension_numbers)
  same_layout = asked == lax.conv_dimension_numbers(*shapes, _CANONICAL)
  undilated = all(
    d is None or set(d) <= {1} for d in (lhs_dilation, rhs_dilation)
  )
  return (
    same_layout and undilated and all(v in (None, 1) for v in kwargs.values())
  )
