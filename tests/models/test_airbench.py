import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bdjax import models
from bdjax.errors import UserError
from bdjax.models import airbench

SHAPE = (12, 10, 3)


@pytest.fixture(scope="module")
def model():
  return models.get("airbench", image_shape=SHAPE, num_classes=5, width=8)


@pytest.fixture(scope="module")
def images():
  """Neighbouring pixels of these are alike, as in photographs."""
  noise = np.random.default_rng(0).random((64, 13, 11, 3), np.float32)
  return (noise[:, :-1, :-1] + noise[:, 1:, :-1] + noise[:, 1:, 1:]) / 3


@pytest.fixture(scope="module")
def weights(model, images):
  params, batch_stats = jax.jit(model.init)(jax.random.key(0))
  batch_stats = jax.jit(model.prepare)(params, batch_stats, images)
  return models.Weights(params, batch_stats)


def test_parameter_count():
  model = models.get("airbench", image_shape=(32, 32, 3), num_classes=10)
  pairs = 24 * 64 + 64 * 64 + 64 * 256 + 3 * 256 * 256
  biases = 2 * (64 + 256 + 256)
  assert models.count_parameters(model) == 9 * pairs + biases + 10 * 256


def test_the_stem_whitens_what_it_was_prepared_with(weights, images):
  kernel = np.asarray(weights.batch_stats["stem"]["kernel"], np.float64)
  views = [images[:, i : i + 11, j : j + 9] for i in (0, 1) for j in (0, 1)]
  patches = np.concatenate(views, -1).reshape(-1, 12).astype(np.float64)
  out = patches @ kernel.reshape(12, 24)
  np.testing.assert_allclose(out[:, 12:], -out[:, :12], atol=1e-5)
  second = out[:, :12].T @ out[:, :12] / len(out)
  # 1, less what the constant in the root takes off the small eigenvalues.
  np.testing.assert_allclose(second, np.diag(np.diag(second)), atol=1e-3)
  values = np.linalg.eigvalsh(patches.T @ patches / len(patches))
  np.testing.assert_allclose(
    np.sort(np.diag(second)), values / (values + 5e-4), rtol=1e-3
  )


def test_training_leaves_the_stem_as_it_is(model, weights, images):
  _, after = jax.jit(model.apply, static_argnames="train")(
    *weights, images, train=True
  )
  changed = jax.tree.map(
    lambda a, b: bool((a != b).any()), after, weights.batch_stats
  )
  assert not changed["stem"]["kernel"]
  assert all(jax.tree.leaves(changed["groups"]))


def test_first_filters_pass_their_input_on(weights):
  kernel = weights.params["groups"][1]["conv_1"]["kernel"]  # 8 -> 32 channels
  x = np.random.default_rng(1).random((2, 5, 6, 8), np.float32)
  out = jax.lax.conv_general_dilated(
    x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
  )
  np.testing.assert_allclose(out[..., :8], x, rtol=1e-6)
  assert float(jnp.abs(kernel[..., 8:]).max()) <= (9 * 8) ** -0.5


def test_head_of_features_is_apply(model, weights, images):
  @jax.jit
  def both(weights, images):
    features = model.features(*weights, images)
    assert features.shape == (64, 1, 1, 32)
    return model.head(*weights, features), model.apply(*weights, images)

  halves, (whole, _) = both(weights, images)
  np.testing.assert_allclose(halves, whole, rtol=1e-5, atol=1e-6)


def test_refuses_images_that_pooling_would_leave_nothing_of():
  small = {"image_shape": (8, 9, 3), "num_classes": 2}
  with pytest.raises(UserError, match="at least 9x9 for airbench"):
    models.get("airbench", **small)
  side = airbench.SMALLEST_SIDE
  model = models.get("airbench", image_shape=(side, side, 1), num_classes=2)
  features = jax.eval_shape(
    lambda key: model.features(*model.init(key), jnp.zeros((1, side, side, 1))),
    jax.random.key(0),
  )
  assert features.shape == (1, 1, 1, 256)
