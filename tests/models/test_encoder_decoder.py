import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from bdjax import models
from bdjax.models.encoder_decoder import ConvBlock, encoder_decoder

KEY = jax.random.key(3)


def _uniform(*shape):
  return np.random.default_rng(0).random(shape, np.float32)


def _parameters(channels):
  """3x3 kernels from each number of channels to the next, and two vectors."""
  pairs = zip(channels[:-1], channels[1:], strict=True)
  return sum(9 * fan_in * fan_out + 2 * fan_out for fan_in, fan_out in pairs)


@pytest.mark.parametrize(
  "shape, out, widths, channels",
  [
    (
      (32, 32, 3),
      3,
      (32, 64, 128),
      # fmt: off
      [3, 32, 32, 64, 64, 128, 128, 128, 128, 64, 64, 32, 32, 3],
      # fmt: on
    ),
    ((28, 28, 1), 1, (16, 32), [1, 16, 16, 32, 32, 32, 32, 16, 16, 1]),
  ],
)
def test_parameter_count(shape, out, widths, channels):
  network = encoder_decoder(shape, out, widths)
  assert models.count_parameters(network) == _parameters(channels)


@pytest.fixture(scope="module")
def small():
  """A network of sides that two steps do not divide, its weights, apply."""
  network = encoder_decoder((9, 7, 3), 1, (2, 3))
  weights = jax.jit(network.init)(KEY)
  return network, weights, jax.jit(network.apply, static_argnames="train")


def test_outputs_have_the_size_of_the_images(small):
  network, weights, apply = small
  outputs, after = apply(*weights, _uniform(4, 9, 7, 3))
  assert outputs.shape == (4, 9, 7, 1) and outputs.dtype == jnp.float32
  jax.tree.map(np.testing.assert_array_equal, after, weights[1])
  for shape in ((8, 8, 1), (28, 28, 1), (5, 4, 3)):
    network = encoder_decoder(shape, 2, (2, 2))
    images = jax.ShapeDtypeStruct((3, *shape), jnp.float32)
    weights = jax.eval_shape(network.init, KEY)
    outputs, _ = jax.eval_shape(network.apply, *weights, images)
    assert outputs.shape == (3, *shape[:2], 2)


def test_training_uses_and_updates_batch_statistics(small):
  _, (params, before), apply = small
  outputs, after = apply(params, before, _uniform(4, 9, 7, 3), train=True)
  changed = jax.tree.map(lambda a, b: bool((a != b).any()), before, after)
  assert all(jax.tree.leaves(changed))
  # The last layer is normalised and neither rectified nor squashed.
  assert abs(float(outputs.mean())) < 1e-5
  assert float(outputs.std()) == pytest.approx(1.0, abs=1e-3)
  assert float(outputs.min()) < -1


@pytest.mark.slow
def test_gradients_reach_every_parameter(small):
  network, (params, batch_stats), _ = small
  images = _uniform(4, 9, 7, 3)

  @jax.jit
  @jax.grad
  def gradient(params):
    outputs, _ = network.apply(params, batch_stats, images, train=True)
    return (jnp.tanh(outputs) * images[..., :1]).sum()

  for leaf in jax.tree.leaves(gradient(params)):
    assert np.isfinite(leaf).all() and (leaf != 0).any()


@pytest.mark.slow
def test_vmap_over_parameters_equals_a_loop(small):
  network, _, apply = small
  images = _uniform(2, 9, 7, 3)
  population = jax.jit(jax.vmap(network.init))(jax.random.split(KEY, 2))
  outputs, _ = jax.jit(
    jax.vmap(lambda p, s: network.apply(p, s, images, train=True))
  )(*population)
  for i, got in enumerate(outputs):
    weights = jax.tree.map(lambda x, i=i: x[i], population)
    expected, _ = apply(*weights, images, train=True)
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4)


def test_one_step_by_hand():
  # Kernels that pass their input on: the network pools and scales back.
  network = encoder_decoder((4, 4, 1), 1, (1,))
  params, batch_stats = jax.jit(network.init)(KEY)
  apply = jax.jit(network.apply)
  identity = np.zeros((3, 3, 1, 1), np.float32)
  identity[1, 1] = 1
  params = jax.tree.map(lambda x: identity if x.ndim == 4 else x, params)
  images = np.arange(16, dtype=np.float32).reshape(1, 4, 4, 1)
  outputs, _ = apply(params, batch_stats, images)
  # Maxima 5 7 / 13 15; bilinear with half-pixel centres, per axis the weights
  # of the first value are 1, 3/4, 1/4 and 0.
  along = np.array([0, 0.25, 0.75, 1])
  expected = 5 + 2 * along[None, :] + 8 * along[:, None]
  # Five normalisations with variance 1 divide by sqrt(1 + 1e-5) each.
  np.testing.assert_allclose(
    outputs[0, ..., 0], expected * (1 + 1e-5) ** -2.5, rtol=1e-5
  )


def test_the_last_block_alone_has_no_relu():
  network = encoder_decoder((4, 4, 1), 1, (1,))
  params, batch_stats = jax.jit(network.init)(KEY)
  apply = jax.jit(network.apply)
  negative = np.zeros((3, 3, 1, 1), np.float32)
  negative[1, 1] = -1
  for path in (("middle",), ("up", 0, 1)):
    kernels = jax.tree.map(lambda x: abs(x), params)
    leaf = kernels
    for key in path:
      leaf = leaf[key]
    leaf["conv"]["kernel"] = jnp.asarray(negative)
    outputs, _ = apply(kernels, batch_stats, _uniform(1, 4, 4, 1))
    if path == ("middle",):  # rectified: nothing is left
      assert (outputs == 0).all()
    else:
      assert (outputs < 0).all()


def test_normalises_inside():
  plain = encoder_decoder((4, 4, 3), 3, (2,))
  mean, std = (0.2, 0.4, 0.6), (0.1, 0.2, 0.3)
  normalising = encoder_decoder((4, 4, 3), 3, (2,), mean=mean, std=std)
  weights = jax.jit(plain.init)(KEY)
  images = _uniform(2, 4, 4, 3)
  by_hand = (images - np.array(mean, np.float32)) / np.array(std, np.float32)
  expected, _ = jax.jit(plain.apply)(*weights, by_hand)
  got, _ = jax.jit(normalising.apply)(*weights, images)
  np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)


def test_momentum_is_that_of_the_released_code():
  block = ConvBlock(1, 1, rngs=nnx.Rngs(0))
  block.conv.kernel[...] = jnp.zeros((3, 3, 1, 1)).at[1, 1].set(1.0)
  block(jnp.full((1, 4, 4, 1), 2.0), True)
  assert float(block.norm.mean[0]) == pytest.approx(0.05 * 2)


def test_an_image_too_small_for_the_steps_is_refused():
  with pytest.raises(ValueError, match=r"at least 8 pixels .*\(got 7x8\)"):
    encoder_decoder((7, 8, 3), 3, (2, 2, 2))
