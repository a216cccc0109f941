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

from bdjax.models import narrow, winograd

_CANONICAL = ("NHWC", "HWIO", "NHWC")


def _lax_conv(x, kernel, strides, padding, lhs=(1, 1), rhs=(1, 1)):
  return lax.conv_general_dilated(
    x,
    kernel,
    strides,
    padding,
    lhs_dilation=lhs,
    rhs_dilation=rhs,
    dimension_numbers=_CANONICAL,
  )


def _fast_conv(x, kernel, strides, padding, lhs=(1, 1)):
  """The same by the way that is fastest on CPU."""
  if lhs == (1, 1) and narrow.fits(kernel, strides, padding):
    if narrow.pays(kernel):
      return narrow.convolve(x, kernel, padding)
  if lhs == (1, 1) and winograd.fits(x, kernel, strides, padding):
    if winograd.pays(x, kernel):
      return winograd.convolve(x, kernel, padding)
  return _lax_conv(x, kernel, strides, padding, lhs)


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
  # The rows and columns that the strided forward window reads, per dimension;
  # what is left of the padded input beyond them has no gradient.
  dx_padding, dk_padding = [], []
  for i in (0, 1):
    size, window, out = x.shape[1 + i], kernel.shape[i], g.shape[1 + i]
    low = padding[i][0]
    reach = (out - 1) * strides[i] + 1
    dx_padding.append((window - 1 - low, size + low - reach))
    dk_padding.append((low, reach + window - 1 - size - low))
  if narrow.fits(kernel, strides, padding):
    dx = narrow.input_gradient(g, kernel, padding)
  else:
    flipped = kernel[::-1, ::-1].transpose(0, 1, 3, 2)
    dx = _fast_conv(g, flipped, (1, 1), dx_padding, lhs=strides)
  if winograd.fits(x, kernel, strides, padding):
    if winograd.gradient_pays(x, kernel):
      return dx, winograd.kernel_gradient(x, g, padding)
  # The batch takes the part of the channels: [C,H,W,B] * [H',W',B... -> K].
  dk = _lax_conv(
    x.transpose(3, 1, 2, 0),
    g.transpose(1, 2, 0, 3),
    (1, 1),
    dk_padding,
    rhs=strides,
  )
  return dx, dk.transpose(1, 2, 0, 3)


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
  return _max_pool(x), winner


def _pool_backward(winner, g):
  b, h, w, c = g.shape
  rows = []
  for i in (0, 1):
    row = [jnp.where(winner == 2 * i + j, g, jnp.zeros_like(g)) for j in (0, 1)]
    rows.append(jnp.stack(row, 3))
  return (jnp.stack(rows, 2).reshape(b, 2 * h, 2 * w, c),)


_max_pool.defvjp(_pool_forward, _pool_backward)
