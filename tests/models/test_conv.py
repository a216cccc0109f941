import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bdjax import models
from bdjax.models import conv, winograd

DIMENSIONS = ("NHWC", "HWIO", "NHWC")


def _normal(seed, *shapes):
  """Arrays of normal draws, made without compiling anything."""
  rng = np.random.default_rng(seed)
  return [rng.standard_normal(shape, np.float32) for shape in shapes]


def _lax(x, kernel, strides, padding):
  return jax.lax.conv_general_dilated(
    x, kernel, strides, padding, dimension_numbers=DIMENSIONS
  )


@pytest.mark.slow
@settings(max_examples=40, deadline=None)
@given(
  size=st.tuples(st.integers(5, 9), st.integers(5, 9)),
  window=st.tuples(st.integers(1, 4), st.integers(1, 4)),
  strides=st.tuples(st.integers(1, 3), st.integers(1, 3)),
  padding=st.tuples(
    st.tuples(st.integers(0, 2), st.integers(0, 2)),
    st.tuples(st.integers(0, 2), st.integers(0, 2)),
  ),
  channels=st.sampled_from([1, 3, 5]),
  seed=st.integers(0, 99),
)
def test_equals_lax_in_value_and_gradient(
  size, window, strides, padding, channels, seed
):
  # No strides as long as a window, but for 1x1: there XLA's simplifier ends
  # the process (jaxlib 0.10.2, and with lax's own gradient as well).
  strides = tuple(
    1 if w > 1 and s >= w else s for s, w in zip(strides, window, strict=True)
  )
  # Not more than a window reads: jaxlib 0.10.2 gets the gradient of that wrong
  # on CPU (a convolution with negative padding), in lax's own too.
  padding = tuple(
    tuple(min(p, w - 1) for p in pair)
    for pair, w in zip(padding, window, strict=True)
  )
  x, kernel = _normal(seed, (2, *size, channels), (*window, channels, 4))

  def lax_conv(x, k):
    return _lax(x, k, strides, padding)

  def mine(x, k):
    return conv.canonical_conv(x, k, strides, padding)

  (g,) = _normal(seed + 1, jax.eval_shape(lax_conv, x, kernel).shape)

  @jax.jit
  def values_and_gradients(x, kernel, g):
    out = []
    for function in (mine, lax_conv):
      value, pull = jax.vjp(function, x, kernel)
      out.append((value, *pull(g)))
    return out

  got, want = values_and_gradients(x, kernel, g)
  np.testing.assert_allclose(got[0], want[0], rtol=1e-5, atol=1e-5)
  for a, b in zip(got[1:], want[1:], strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("backend", ["gpu", "tpu"])
def test_other_backends_use_lax(monkeypatch, backend):
  x, kernel = _normal(0, (2, 8, 8, 1), (3, 3, 1, 4))

  def convolve(x, kernel):
    return conv.conv(x, kernel, (1, 1), "SAME", dimension_numbers=DIMENSIONS)

  assert "custom_vjp" in str(jax.make_jaxpr(convolve)(x, kernel))
  monkeypatch.setattr(jax, "default_backend", lambda: backend)
  # A new function: jax keeps the trace of the old one.
  (equation,) = jax.make_jaxpr(lambda x, k: convolve(x, k))(x, kernel).eqns
  assert equation.primitive.name == "conv_general_dilated"
  np.testing.assert_array_equal(
    convolve(x, kernel), _lax(x, kernel, (1, 1), "SAME")
  )


@pytest.mark.parametrize(
  "name, side, options",
  [
    ("airbench", 9, {"width": 4}),
    ("cnn", 8, {"width": 4}),
    ("deepid", 31, {}),
    ("minivgg", 8, {"width": 4}),
    ("resnet10", 8, {"width": 4}),
    ("resnet18", 8, {"width": 4, "stem": "imagenet"}),
  ],
)
def test_every_network_can_be_traced_for_other_backends(
  monkeypatch, name, side, options
):
  shape = (side, side, 3)
  model = models.get(name, image_shape=shape, num_classes=3, **options)
  weights = jax.eval_shape(model.init, jax.random.key(0))
  images = jax.ShapeDtypeStruct((2, *shape), jnp.float32)

  def program():
    def loss(params, batch_stats, images):
      return model.apply(params, batch_stats, images, train=True)[0].sum()

    return str(jax.make_jaxpr(jax.grad(loss))(*weights, images))

  # On CPU alone a kernel's gradient is summed over chunks of the batch.
  assert "scan[" in program()
  monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
  assert "conv_general_dilated[" in program() and "scan[" not in program()


# A case of each algorithm; the property that draws them is marked slow.
@pytest.mark.parametrize(
  "size, window, stride, padding, channels",
  [
    ((5, 7), (3, 3), 1, ((1, 1), (2, 0)), 1),
    ((7, 6), (3, 2), 2, ((1, 2), (0, 1)), 5),
    ((6, 5), (1, 1), 2, ((0, 0), (0, 0)), 4),
  ],
)
def test_cases_equal_lax_in_value_and_gradient(
  size, window, stride, padding, channels
):
  x, kernel = _normal(0, (2, *size, channels), (*window, channels, 4))

  @functools.partial(jax.jit, static_argnums=0)
  def value_and_gradients(function, x, kernel):
    value, pull = jax.vjp(
      lambda x, k: function(x, k, (stride, stride), padding), x, kernel
    )
    return value, *pull(jnp.cos(value))

  got = value_and_gradients(conv.canonical_conv, x, kernel)
  expected = value_and_gradients(_lax, x, kernel)
  for a, b in zip(got, expected, strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("padding", ["SAME", "VALID", ((1, 1), (2, 0))])
@pytest.mark.parametrize("strides", [(1, 1), (2, 2)])
def test_accepts_the_paddings_of_lax(padding, strides):
  x, kernel = _normal(0, (2, 7, 8, 3), (3, 3, 3, 4))
  got = conv.conv(x, kernel, strides, padding, dimension_numbers=DIMENSIONS)
  want = _lax(x, kernel, strides, padding)
  np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


def test_groups_and_dilation_go_to_lax():
  x, kernel = _normal(0, (1, 8, 8, 4), (3, 3, 2, 4))
  kwargs = {
    "rhs_dilation": (2, 2),
    "feature_group_count": 2,
    "dimension_numbers": DIMENSIONS,
  }
  got = conv.conv(x, kernel, (1, 1), "SAME", **kwargs)
  want = jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", **kwargs)
  np.testing.assert_array_equal(got, want)


def test_other_layouts_go_to_lax():
  x, kernel = _normal(0, (1, 3, 8, 8), (4, 3, 3, 3))
  numbers = ("NCHW", "OIHW", "NCHW")
  got = conv.conv(x, kernel, (1, 1), "SAME", dimension_numbers=numbers)
  want = jax.lax.conv_general_dilated(
    x, kernel, (1, 1), "SAME", dimension_numbers=numbers
  )
  np.testing.assert_array_equal(got, want)


def test_the_models_convolutions_are_canonical():
  model = models.get("resnet18", image_shape=(8, 8, 3), num_classes=3, width=4)
  params, stats = jax.eval_shape(model.init, jax.random.key(0))
  images = jax.ShapeDtypeStruct((2, 8, 8, 3), jnp.float32)

  def loss(params, stats, images):
    return model.apply(params, stats, images, train=True)[0].sum()

  text = jax.jit(jax.grad(loss)).lower(params, stats, images).as_text()
  found = {
    line.split("dim_numbers = ")[1].split(",  window")[0].split(", window")[0]
    for line in text.splitlines()
    if "stablehlo.convolution" in line
  }
  assert found == {"[b, 0, 1, f]x[0, 1, i, o]->[b, 0, 1, f]"}


def test_gradient_in_a_loop_asks_for_canonical_layouts_only():
  # What keeps a training step fast inside lax.scan on CPU.
  x = jnp.zeros((2, 8, 8, 3))
  kernel = jnp.zeros((3, 3, 3, 4))

  def loss(kernel, x):
    return conv.canonical_conv(x, kernel, (2, 2), ((1, 1), (1, 1))).sum()

  text = jax.jit(jax.grad(loss, (0, 1))).lower(kernel, x).as_text()
  layouts = [
    line.split("dim_numbers = ")[1].split(",  window")[0].split(", window")[0]
    for line in text.splitlines()
    if "stablehlo.convolution" in line
  ]
  assert len(layouts) >= 2
  assert set(layouts) == {"[b, 0, 1, f]x[0, 1, i, o]->[b, 0, 1, f]"}


def test_under_vmap():
  x, kernel = _normal(0, (3, 2, 6, 6, 3), (3, 3, 3, 3, 4))

  def loss(kernel, x):
    out = conv.canonical_conv(x, kernel, (1, 1), ((1, 1), (1, 1)))
    return jnp.square(out).sum()

  grad = jax.jit(jax.grad(loss))
  got = jax.jit(jax.vmap(jax.grad(loss)))(kernel, x)
  want = np.stack([grad(k, i) for k, i in zip(kernel, x, strict=True)])
  np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)


def test_the_kernels_gradient_is_summed_over_chunks_of_images(monkeypatch):
  x, kernel = _normal(0, (5, 5, 5, 4), (3, 3, 4, 7))
  padding = ((1, 1), (1, 1))
  want, pull = jax.vjp(lambda k: _lax(x, k, (2, 2), padding), kernel)
  (g,) = _normal(1, want.shape)
  monkeypatch.setattr(conv, "_CHUNK_BYTES", 2 * x[0].nbytes)

  def gradient(k):
    _, pull = jax.vjp(lambda k: conv.canonical_conv(x, k, (2, 2), padding), k)
    return pull(g)[0]

  (loop,) = [
    e
    for e in jax.make_jaxpr(gradient)(kernel).eqns
    if e.primitive.name == "scan"
  ]
  assert loop.params["length"] == 3
  np.testing.assert_allclose(gradient(kernel), pull(g)[0], rtol=1e-4, atol=1e-4)


@pytest.mark.slow
@settings(max_examples=10, deadline=None)
@given(
  size=st.tuples(st.integers(3, 9), st.integers(3, 9)),
  padding=st.tuples(
    st.tuples(st.integers(0, 2), st.integers(0, 2)),
    st.tuples(st.integers(0, 2), st.integers(0, 2)),
  ),
  batch=st.integers(1, 5),
  seed=st.integers(0, 99),
)
def test_winograd_equals_lax_in_value_and_gradient(size, padding, batch, seed):
  x, kernel = _normal(seed, (batch, *size, 5), (3, 3, 5, 4))
  want, pull = jax.vjp(lambda k: _lax(x, k, (1, 1), padding), kernel)
  (g,) = _normal(seed + 1, want.shape)
  got = winograd.convolve(x, kernel, padding)
  gradient = winograd.kernel_gradient(x, g, padding)
  for a, b in ((got, want), (gradient, pull(g)[0])):
    np.testing.assert_allclose(a, b, atol=1e-5 * np.abs(b).max())


@pytest.mark.slow
def test_many_channels_go_by_winograd_and_equal_lax():
  x, kernel = _normal(0, (48, 8, 8, 64), (3, 3, 64, 128))
  padding = ((1, 1), (1, 1))

  def mine(x, k):
    return conv.canonical_conv(x, k, (1, 1), padding)

  # The direct convolution and its two gradients are all replaced.
  assert "conv_general_dilated" not in str(
    jax.make_jaxpr(lambda x, k, g: jax.vjp(mine, x, k)[1](g))(
      x, kernel, jax.eval_shape(mine, x, kernel)
    )
  )
  want, pull = jax.vjp(lambda x, k: _lax(x, k, (1, 1), padding), x, kernel)
  got, my_pull = jax.vjp(mine, x, kernel)
  (g,) = _normal(1, want.shape)
  for a, b in zip((got, *my_pull(g)), (want, *pull(g)), strict=True):
    assert np.linalg.norm(a - b) <= 1e-5 * np.linalg.norm(b)


@pytest.mark.parametrize("batch", [6, 7])
def test_winograd_goes_through_a_batch_in_chunks(batch, monkeypatch):
  monkeypatch.setattr(winograd, "_TILES", 12)  # three images of four tiles
  monkeypatch.setattr(winograd, "_MULTIPLICATIONS", 0)
  x, kernel = _normal(0, (batch, 8, 8, 2), (3, 3, 2, 3))
  padding = ((1, 1), (1, 1))
  want, pull = jax.vjp(lambda k: _lax(x, k, (1, 1), padding), kernel)
  (g,) = _normal(1, want.shape)

  def both(x, kernel, g):
    got = winograd.convolve(x, kernel, padding)
    return got, winograd.kernel_gradient(x, g, padding)

  loops = [
    e.params["length"]
    for e in jax.make_jaxpr(both)(x, kernel, g).eqns
    if e.primitive.name == "scan"
  ]
  assert loops == [-(-batch // 3)] * 2
  got, gradient = both(x, kernel, g)
  np.testing.assert_allclose(got, want, atol=1e-5 * np.abs(want).max())
  np.testing.assert_allclose(gradient, pull(g)[0], rtol=1e-4, atol=1e-4)
