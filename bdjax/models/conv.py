"""The convolution and the 2x2 max pool that are fast on the backend at hand.

XLA:CPU sends a convolution to its fast kernel only in the layout NHWC x HWIO
-> NHWC. The gradients that JAX derives ask for other layouts; outside loops a
compiler pass rewrites them, inside `lax.scan` it does not, and a training
step is 50 times slower there (jax issue 12868). So on CPU the gradients are
written out here, in the canonical layout, and convolutions of very few and of
many channels go ways of their own. Other backends use `lax` as it is.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax

from bdjax.models import chunks, narrow, winograd

_CANONICAL = ("NHWC", "HWIO", "NHWC")
_CHUNK_BYTES = 4 << 20  # of images whose gradient by the kernel is summed


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
  """The same by the way that is fastest on CPU."""
  if narrow.fits(kernel, strides, padding) and narrow.pays(kernel):
    return narrow.convolve(x, kernel, padding)
  if winograd.fits(x, kernel, strides, padding) and winograd.pays(x, kernel):
    return winograd.convolve(x, kernel, padding)
  return _lax_conv(x, kernel, strides, padding)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def canonical_conv(x, kernel, strides, padding):
  """A 2-D convolution whose gradients are canonical convolutions too.

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
  if narrow.fits(kernel, strides, padding):
    dx = narrow.input_gradient(g, kernel, padding)
  else:
    dx = _input_gradient(g, kernel, strides, padding, x.shape[1:3])
  if winograd.fits(x, kernel, strides, padding) and winograd.pays(x, kernel):
    return dx, winograd.kernel_gradient(x, g, padding)
  return dx, _kernel_gradient(x, g, strides, padding, kernel.shape[:2])


def _input_gradient(g, kernel, strides, padding, sizes):
  """The gradient by an input of `sizes` rows and columns.

  Row r of the input takes part in output o by row i of the kernel where
  o stride + i - low = r. So rows with one remainder by the stride see only
  every stride-th row of the kernel: for each of these phases a convolution of
  stride 1, in place of one over a gradient that is mostly zeros.
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
  """For each remainder: the kernel's first row, and the gradient's padding."""
  count = -(-size // stride)
  found = []
  for remainder in range(stride):
    skipped, first = divmod(remainder + padding[0], stride)
    taps = len(range(first, window, stride))
    found.append((first, (taps - 1 - skipped, count + skipped - out)))
  return found


def _phase(g, kernel, strides, row, column):
  """Every stride-th row and column of the gradient by the input."""
  (first_row, rows), (first_column, columns) = row, column
  part = kernel[first_row :: strides[0], first_column :: strides[1]]
  part, pads = part[::-1, ::-1].transpose(0, 1, 3, 2), (rows, columns)
  if not part.size:
    sizes = [g.shape[1 + i] + sum(pads[i]) - part.shape[i] + 1 for i in (0, 1)]
    return jnp.zeros((g.shape[0], *sizes, kernel.shape[2]), g.dtype)
  # What reaches beyond the gradient is cut off first: jaxlib 0.10.2 computes
  # some convolutions with negative padding wrongly on CPU.
  cut = [(min(0, low), min(0, high), 0) for low, high in pads]
  g = lax.pad(g, jnp.zeros((), g.dtype), ((0, 0, 0), *cut, (0, 0, 0)))
  pads = tuple((max(0, low), max(0, high)) for low, high in pads)
  return _fast_conv(g, part, (1, 1), pads)


def _kernel_gradient(x, g, strides, padding, window):
  """The gradient by a kernel of `window` rows and columns.

  The batch takes the part of the channels, [C,H,W,B] * [H',W',B -> K]. Some
  images at a time: turned around all at once, they are far out of the cache,
  and the compiler would compute anew, out of order, what led to them.
  """
  if window == (1, 1) and not any(map(any, padding)):
    x = x[:, :: strides[0], :: strides[1]]
    return jnp.einsum("bhwc,bhwk->ck", x, g)[None, None]
  pads = []
  for i in (0, 1):
    low = padding[i][0]
    reach = (g.shape[1 + i] - 1) * strides[i] + window[i]
    pads.append((low, reach - x.shape[1 + i] - low))

  def add_some(total, some):
    x, g = some
    dk = _lax_conv(
      x.transpose(3, 1, 2, 0), g.transpose(1, 2, 0, 3), (1, 1), pads, strides
    )
    return total + dk, None

  image = max(x[0].size, g[0].size) * x.dtype.itemsize
  some = chunks.cut([x, g], _CHUNK_BYTES // image)
  zero = jnp.zeros((x.shape[3], *window, g.shape[3]), x.dtype)
  total, _ = lax.scan(add_some, zero, some)
  return total.transpose(1, 2, 0, 3)


canonical_conv.defvjp(_forward, _backward)


def conv(lhs, rhs, window_strides, padding, **kwargs):
  """`lax.conv_general_dilated`, fast on this backend; for `nnx.Conv`.

  Takes and returns what `lax.conv_general_dilated` does. Cases that the
  models here do not use (groups, dilation, other layouts) go to `lax`.
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
  """Whether `canonical_conv` computes what these arguments ask for."""
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


def max_pool(x):
  """2x2 max pooling with stride 2; an odd last row or column is dropped.

  The gradient goes to the first largest value of each window, as in `lax`,
  but elementwise: the scatter that `lax` derives is most of a small CNN's
  step on CPU. Which value that is, is decided once, by a tournament: compared
  with the largest, a value that the compiler computes anew for the comparison
  may differ in its last bit, and the gradient would be lost.

  Args:
    x: float [B,H,W,C].

  Returns:
    float [B,H//2,W//2,C].
  """
  _, height, width, _ = x.shape
  return _max_pool(x[:, : height // 2 * 2, : width // 2 * 2])


def _windows(x):
  b, h, w, c = x.shape
  return x.reshape(b, h // 2, 2, w // 2, 2, c)


@jax.custom_vjp
def _max_pool(x):
  return _windows(x).max((2, 4))


def _pool_forward(x):
  """Also the number, 0 to 3, of each window's first largest value: int8."""
  windows = _windows(x)
  best = windows[:, :, 0, :, 0]
  winner = jnp.zeros(best.shape, jnp.int8)
  for number in range(1, 4):
    value = windows[:, :, number // 2, :, number % 2]
    better = value > best
    winner = jnp.where(better, jnp.int8(number), winner)
    best = jnp.where(better, value, best)
  # Not `best`, which loses a NaN.
  return _max_pool(x), winner


def _pool_backward(winner, g):
  b, h, w, c = g.shape
  rows = []
  for i in (0, 1):
    row = [jnp.where(winner == 2 * i + j, g, jnp.zeros_like(g)) for j in (0, 1)]
    rows.append(jnp.stack(row, 3))
  return (jnp.stack(rows, 2).reshape(b, 2 * h, 2 * w, c),)


_max_pool.defvjp(_pool_forward, _pool_backward)
