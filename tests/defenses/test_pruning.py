import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bdjax import batching, models, sharding
from bdjax.defenses.incremental_pruning import predict_prefixes, prefix_masks
from bdjax.defenses.pruning import (
  PruningSettings,
  compile_curve,
  mean_activations,
  pruning,
  pruning_order,
  stopping_points,
)
from bdjax.errors import UserError
from bdjax.models import Weights
from bdjax.models.masking import layer_output, masked, prune

KEY = jax.random.key(11)
SHAPE = (8, 8, 1)
IMAGES = jax.random.randint(KEY, (21, *SHAPE), 0, 256).astype(jnp.uint8)
MESH = sharding.make_mesh(jax.devices()[:1])


@functools.cache
def network(name):
  """Untrained, but not of one opinion: mean logits are 0."""
  model = models.get(name, image_shape=SHAPE, num_classes=10, width=8)
  params, batch_stats = jax.jit(model.init)(KEY)
  images = IMAGES.astype(jnp.float32) / 255
  logits = jax.jit(lambda p: model.apply(p, batch_stats, images)[0])
  params["logits"]["bias"] = -logits(params).mean(0)
  return model, Weights(params, batch_stats)


def test_order_and_prefix_masks_by_hand():
  order = pruning_order(jnp.array([0.3, 0.0, 0.2, 0.0]))
  assert order.tolist() == [1, 3, 2, 0]  # of equals, the first first
  got = jax.jit(prefix_masks)(order)
  assert got.dtype == jnp.float32
  assert got.tolist() == [
    [1, 1, 1, 1],
    [1, 0, 1, 1],
    [1, 0, 1, 0],
    [1, 0, 0, 0],
    [0, 0, 0, 0],
  ]


def test_prefix_masks_of_many_orders_equal_a_loop():
  activations = jax.random.uniform(KEY, (3, 6))
  orders = jax.vmap(pruning_order)(activations)
  got = jax.vmap(prefix_masks)(orders)
  for masks, order, values in zip(got, orders, activations, strict=True):
    np.testing.assert_array_equal(masks, prefix_masks(order))
    for k, mask in enumerate(masks):
      assert int(mask.sum()) == 6 - k
      if 0 < k < 6:  # what is pruned is less active than what is left
        assert values[mask == 0].max() <= values[mask == 1].min()


@pytest.mark.parametrize("batch", [4, 64])
def test_mean_activations_are_over_images_and_positions(batch):
  model, weights = network("cnn")
  got = mean_activations(model, "conv_1", batch, MESH)(weights, IMAGES)
  images = IMAGES.astype(jnp.float32) / 255
  want = layer_output(model, weights, images, "conv_1")
  np.testing.assert_allclose(got, want.mean((0, 1, 2)), rtol=1e-5)
  features = mean_activations(model, "conv_2", batch, MESH)
  want = model.features(*weights, images).mean((0, 1, 2))
  np.testing.assert_allclose(features(weights, IMAGES), want, rtol=1e-5)


def _prefixes(name, layer):
  model, weights = network(name)
  order = jax.random.permutation(KEY, models.layers(model, SHAPE)[layer])
  return model, weights, order


def _check_against_a_loop(got, model, weights, layer, order):
  masks = prefix_masks(order)

  @jax.jit
  def one(mask):
    pruned = prune(weights, {layer: mask})
    images = IMAGES.astype(jnp.float32) / 255
    return masked(model).apply(*pruned, images)[0].argmax(-1)

  assert got.shape == (21, len(masks)) and got.dtype == jnp.int32
  for k, mask in enumerate(masks):
    np.testing.assert_array_equal(got[:, k], one(mask))
  assert len(np.unique(got, axis=1).T) > 2  # the masks do something


@pytest.mark.parametrize("layer", ["conv_1", "conv_2"])
def test_all_prefixes_at_once_equal_a_loop_of_masked_models(layer):
  model, weights, order = _prefixes("cnn", layer)
  run = batching.over_images(predict_prefixes(model, layer), 8, MESH)
  got = run((weights, order), KEY, IMAGES)
  _check_against_a_loop(got, model, weights, layer, order)


@pytest.mark.slow
@pytest.mark.parametrize("layer, again", [("blocks.7", 0), ("blocks.6", 2)])
def test_the_trunk_runs_once_for_all_prefixes(layer, again):
  """Convolutions counted in the compiled program; the loop is a `while`."""
  model, weights, order = _prefixes("resnet18", layer)
  images = IMAGES.astype(jnp.float32) / 255
  predict = jax.jit(predict_prefixes(model, layer))
  program = predict.lower((weights, order), KEY, images).compile()
  text = program.as_text().splitlines()
  lines = [line for line in text if " convolution(" in line]
  # ResNet-18's twenty, each once, but the first, which is a sum on CPU at this
  # width.
  assert len(lines) == 19
  assert sum("/while/body/" in line for line in lines) == again
  got = program((weights, order), KEY, images)
  _check_against_a_loop(got, model, weights, layer, order)


@pytest.mark.slow
def test_prefixes_of_many_networks_equal_a_loop():
  model, weights, order = _prefixes("cnn", "conv_2")
  both = jax.tree.map(lambda x: jnp.stack([x, 0.5 * x]), weights)
  images = IMAGES[:4].astype(jnp.float32) / 255
  predict = jax.jit(predict_prefixes(model, "conv_2"))
  got = jax.vmap(predict, ((0, None), None, None))((both, order), KEY, images)
  for i in (0, 1):
    one = jax.tree.map(lambda x, i=i: x[i], both)
    np.testing.assert_array_equal(got[i], predict((one, order), KEY, images))


def test_the_curve_is_of_the_defenders_data():
  model, weights = network("cnn")
  images = IMAGES.astype(jnp.float32) / 255
  # Labels that the whole network is right on, but for the first three.
  labels = model.apply(*weights, images)[0].argmax(-1)
  labels = jnp.where(jnp.arange(21) < 3, (labels + 1) % 10, labels)
  curve = compile_curve(model, "conv_2", 8, MESH)(weights, IMAGES, labels)
  means = model.features(*weights, images).mean((0, 1, 2))
  np.testing.assert_array_equal(curve.order, np.argsort(means))
  np.testing.assert_array_equal(curve.masks, prefix_masks(curve.order))
  assert curve.accuracies[0] == 18 / 21
  # All channels pruned: the answer is the same for every image.
  logits = model.head(*weights, jnp.zeros((1, 2, 2, 4)))
  want = float(np.mean(np.asarray(labels) == int(logits.argmax())))
  assert curve.accuracies[-1] == want


def test_stopping_points_by_hand():
  # 0.94 - 0.92 is below 0.02 in binary.
  accuracies = [0.94, 0.95, 0.93, 0.92, 0.93, 0.85, 0.5]
  assert stopping_points(accuracies).tolist() == [3, 5, 6]
  assert stopping_points(np.float32(accuracies)).tolist() == [3, 5, 6]
  # Never so far: all.
  assert stopping_points([0.3, 0.25, 0.29], (0.05, 0.1)).tolist() == [1, 2]


def test_stopping_points_of_many_curves_equal_a_loop():
  curves = np.linspace(1.0, 0.5, 12).reshape(1, 12) ** [[1], [2], [5]]
  got = stopping_points(curves)
  assert got.shape == (3, 3)
  for row, curve in zip(got, curves, strict=True):
    np.testing.assert_array_equal(row, stopping_points(curve))
    for k, drop in zip(row, (0.02, 0.04, 0.10), strict=True):
      assert curve[k] <= curve[0] - drop + 1e-6 < curve[k - 1] + 2e-6


def test_the_method_stops_by_the_defenders_data(defender):
  settings = PruningSettings(drops="0.02, 0.3")
  (path,) = pruning(defender, settings)
  predictions = path.answer(
    path.args, KEY, defender.images.astype(jnp.float32) / 255
  )
  accuracies = (predictions == defender.labels[:, None]).mean(0)
  np.testing.assert_allclose(
    path.curves["accuracy, defender's data"], accuracies, rtol=1e-6
  )
  first, second = stopping_points(accuracies, (0.02, 0.3)).tolist()
  assert 0 < first < second <= 8
  assert path.points == {"at_0": 0, "at_0.02": first, "at_0.3": second}
  details = path.details
  assert details["layer"] == "conv_2" and details["points"] == path.points
  order = np.asarray(details["order"])
  for repair, name, count in zip(
    path.repairs, ("drop-0.02", "drop-0.3"), (first, second), strict=True
  ):
    assert repair.name == name and repair.saved
    mask = np.ones(8)
    mask[order[:count]] = 0
    np.testing.assert_array_equal(
      repair.weights.params["masks"]["conv_2"], mask
    )


@pytest.mark.parametrize(
  "settings, words",
  [
    ({"layer": "conv_9"}, "layer must be one of conv_1, conv_2"),
    ({"drops": "2"}, "drops must be between 0 and 1 .got 2"),
    ({"drops": "x"}, "drops must be numbers with commas .* 'x'"),
    ({"drops": "0.1,,0.2"}, "drops must be numbers with commas"),
    ({"drops": "nan"}, "drops must be between 0 and 1 .got nan"),
  ],
)
def test_settings_that_do_not_fit_are_one_line(defender, settings, words):
  with pytest.raises(UserError, match=words) as error:
    pruning(defender, PruningSettings(**settings))
  assert "\n" not in str(error.value)
