import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bdjax import models
from bdjax.errors import UserError

CIFAR = {"image_shape": (32, 32, 3), "num_classes": 10}
MNIST = {"image_shape": (28, 28, 1), "num_classes": 10}
# deepid has a test file of its own.
ANY_SIZE = ["cnn", "minivgg", "resnet10", "resnet18"]


def _init(model):
  return models.Weights(*jax.jit(model.init)(jax.random.key(0)))


def _apply(model):
  return jax.jit(model.apply, static_argnames="train")


def _uniform(*shape):
  return np.random.default_rng(0).random(shape, np.float32)


@pytest.mark.parametrize(
  "name, kwargs, parameters",
  [
    ("cnn", MNIST, 206_922),
    # No biases of the convolutions, but two vectors of each normalisation.
    ("cnn", MNIST | {"batch_norm": True}, 206_922 + 16 + 32),
    ("resnet10", CIFAR, 4_903_242),
    ("resnet18", CIFAR, 11_173_962),
    ("resnet18", CIFAR | {"stem": "imagenet"}, 11_181_642),
    # Convolutions without bias, two batch-norm vectors each, two dense layers.
    (
      "minivgg",
      CIFAR,
      9 * (3 * 64 + 64 * 64 + 64 * 128 + 128 * 128 + 128 * 256 + 256 * 256)
      + 2 * (64 + 64 + 128 + 128 + 256 + 256)
      + (4 * 4 * 256 + 1) * 512
      + (512 + 1) * 10,
    ),
  ],
)
def test_parameter_count(name, kwargs, parameters):
  assert models.count_parameters(models.get(name, **kwargs)) == parameters


@pytest.mark.slow
@pytest.mark.parametrize("name", ANY_SIZE)
@pytest.mark.parametrize("shape", [(8, 8, 1), (8, 11, 3), (33, 32, 3)])
def test_any_size_and_head_of_features_is_apply(name, shape):
  model = models.get(name, image_shape=shape, num_classes=5, width=4)
  weights = _init(model)
  images = _uniform(3, *shape)
  logits, after = _apply(model)(*weights, images)
  assert logits.shape == (3, 5) and logits.dtype == jnp.float32
  jax.tree.map(np.testing.assert_array_equal, after, weights.batch_stats)

  @jax.jit
  def in_two_halves(weights, images):
    features = model.features(*weights, images)
    assert features.ndim == 4
    return model.head(*weights, features)

  again = in_two_halves(weights, images)
  np.testing.assert_allclose(again, logits, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
  "name, options", [("minivgg", {}), ("cnn", {"batch_norm": True})]
)
def test_training_updates_batch_statistics(name, options):
  model = models.get(
    name, image_shape=(8, 8, 1), num_classes=3, width=4, **options
  )
  params, before = _init(model)
  _, after = _apply(model)(params, before, _uniform(4, 8, 8, 1), train=True)
  changed = jax.tree.map(lambda a, b: bool((a != b).any()), before, after)
  assert all(jax.tree.leaves(changed))


def test_inference_and_no_tap_are_the_defaults():
  model = models.get("resnet10", image_shape=(8, 8, 1), num_classes=3, width=4)
  weights = _init(model)
  images = _uniform(2, 8, 8, 1)
  _, after = _apply(model)(*weights, images)
  jax.tree.map(np.testing.assert_array_equal, after, weights.batch_stats)
  with pytest.raises(TypeError, match="positional argument"):
    model.apply(*weights, images, True)


def test_normalises_inside():
  mean, std = (0.2, 0.4, 0.6), (0.1, 0.2, 0.3)
  shape = {"image_shape": (8, 8, 3), "num_classes": 3, "width": 4}
  plain = models.get("cnn", **shape)
  normalising = models.get("cnn", **shape, mean=mean, std=std)
  weights = _init(plain)
  images = _uniform(2, 8, 8, 3)
  by_hand = (images - np.array([[[mean]]], np.float32)) / np.array(
    [[[std]]], np.float32
  )
  want, _ = _apply(plain)(*weights, by_hand)
  got, _ = _apply(normalising)(*weights, images)
  np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_vmap_over_parameters_equals_a_loop():
  model = models.get("resnet18", image_shape=(8, 8, 3), num_classes=3, width=4)
  keys = jax.random.split(jax.random.key(0), 2)
  population = jax.jit(jax.vmap(model.init))(keys)
  images = _uniform(2, 8, 8, 3)
  together = jax.jit(jax.vmap(lambda p, s: model.apply(p, s, images)[0]))
  for i, logits in enumerate(together(*population)):
    one = jax.tree.map(lambda x, i=i: np.asarray(x)[i], population)
    want, _ = _apply(model)(*one, images)
    np.testing.assert_allclose(logits, want, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_bfloat16_computes_in_bfloat16_and_keeps_float32_parameters():
  model = models.get(
    "resnet18",
    image_shape=(8, 8, 3),
    num_classes=3,
    width=4,
    precision="bfloat16",
  )
  images = _uniform(2, 8, 8, 3)
  # Flax's batch normalisation itself mixes dtypes.
  with jax.numpy_dtype_promotion("standard"):
    params, stats = _init(model)
    logits, after = _apply(model)(params, stats, images, train=True)
    features = jax.jit(model.features)(params, stats, images)
  assert features.dtype == jnp.bfloat16
  assert logits.dtype == jnp.float32
  for leaf in jax.tree.leaves((params, after)):
    assert leaf.dtype == jnp.float32


@pytest.mark.parametrize(
  "kwargs, words",
  [
    ({"name": "resnet81"}, "did you mean resnet18"),
    ({"image_shape": (4, 8, 3)}, "4x8x3"),
    ({"image_shape": (8, 8, 2)}, "1 or 3 channels"),
    ({"width": 6}, "multiple of 4"),
    ({"stem": "none"}, "cifar or imagenet"),
    ({"name": "cnn", "stem": "imagenet"}, "only resnet10, resnet18 can"),
    ({"batch_norm": True}, "batch_norm must be False for resnet18.*only cnn"),
    ({"precision": "float16"}, "float32 or bfloat16"),
  ],
)
def test_errors_are_one_line(kwargs, words):
  defaults = {"name": "resnet18", "image_shape": (8, 8, 3), "num_classes": 3}
  with pytest.raises(UserError, match=words) as error:
    models.get(**(defaults | kwargs))
  assert "\n" not in str(error.value)


@pytest.mark.parametrize(
  "name, last",
  [
    ("cnn", {"conv_1": 2, "conv_2": 4}),
    (
      "minivgg",
      dict(
        zip(
          [f"convs.{i}" for i in range(6)], [8, 8, 16, 16, 32, 32], strict=True
        )
      ),
    ),
    (
      "resnet18",
      {"stem": 8, "blocks.0.conv_1": 8, "blocks.0": 8, "blocks.7": 64},
    ),
  ],
)
def test_layers_and_their_channels(name, last):
  model = models.get(name, image_shape=(8, 8, 3), num_classes=3, width=8)
  found = models.layers(model, (8, 8, 3))
  assert last.items() <= found.items()
  assert list(found)[-1] == list(last)[-1]


@pytest.mark.slow
@pytest.mark.parametrize("name", ANY_SIZE)
def test_a_tap_sees_and_replaces_the_features(name):
  model = models.get(name, image_shape=(8, 8, 1), num_classes=3, width=4)
  weights = _init(model)
  images = _uniform(2, 8, 8, 1)
  last = list(models.layers(model, (8, 8, 1)))[-1]

  @jax.jit
  def doubled(weights, images):
    seen = {}

    def tap(layer, x):
      seen[layer] = x
      return 2 * x if layer == last else x

    logits, _ = model.apply(*weights, images, tap=tap)
    return seen[last], logits

  @jax.jit
  def by_hand(weights, images):
    features = model.features(*weights, images)
    return features, model.head(*weights, 2 * features)

  got, want = doubled(weights, images), by_hand(weights, images)
  np.testing.assert_allclose(got[0], want[0], rtol=1e-5)
  np.testing.assert_allclose(got[1], want[1], rtol=1e-4, atol=1e-5)
