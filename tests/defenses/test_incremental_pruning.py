import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bdjax import batching, models, sharding
from bdjax.defenses import incremental_pruning
from bdjax.defenses.incremental_pruning import (
  over_prefixes,
  predict_prefixes,
  prefix_masks,
)
from bdjax.models import Weights
from bdjax.models.base import Model, SplitHead
from bdjax.models.masking import check_layer, mask_channels

KEY = jax.random.key(5)
MESH = sharding.make_mesh(jax.devices()[:1])
# Every network, as small as it goes: name -> shape, classes, width, channels.
NETWORKS = {
  "cnn": ((8, 11, 1), 10, 8, 4),
  "minivgg": ((17, 8, 3), 10, 4, 16),
  "resnet18": ((16, 8, 3), 10, 4, 32),
  "deepid": ((39, 33, 1), 23, 64, 60),
}


@functools.cache
def network(name):
  """Drawn weights with biases, 5 images and an order of the channels."""
  shape, num_classes, width, channels = NETWORKS[name]
  model = models.get(
    name, image_shape=shape, num_classes=num_classes, width=width
  )
  rng = np.random.default_rng(3)
  weights = jax.tree.map(
    lambda x: x + 0.1 * rng.standard_normal(x.shape, np.float32),
    Weights(*jax.jit(model.init)(KEY)),
  )
  images = rng.integers(0, 256, (5, *shape)).astype(np.uint8)
  return model, weights, images, jax.random.permutation(KEY, channels)


def _direct(model, weights, images, order):
  """Logits [C+1,B,K] by masking the features, one mask after the other."""
  images = images.astype(np.float32) / 255
  features = jax.jit(model.features)(*weights, images)
  head = jax.jit(model.head)
  return features, np.array(
    [
      head(*weights, mask_channels(features, mask))
      for mask in prefix_masks(order)
    ]
  )


@pytest.mark.slow
@pytest.mark.parametrize("chunk_size", [1, 3, 100])
@pytest.mark.parametrize("name", NETWORKS)
def test_the_recurrence_equals_a_head_of_masked_features(name, chunk_size):
  model, weights, images, order = network(name)
  features, want = _direct(model, weights, images, order)

  @jax.jit
  def run(weights, features, order):
    return over_prefixes(
      model, weights, features, order, lambda x: x, min(chunk_size, len(order))
    )

  got = run(weights, features, order)
  assert got.shape == want.shape and got.dtype == jnp.float32
  # Most channels do something.
  changes = np.abs(np.diff(want, axis=0)).max((1, 2))
  assert np.mean(changes > 1e-3) > 0.5
  np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_predictions_over_batches_with_a_padded_last_one(name):
  model, weights, images, order = network(name)
  _, logits = _direct(model, weights, images, order)
  layer = check_layer(model, images.shape[1:])
  run = batching.over_images(predict_prefixes(model, layer), 2, MESH)
  got = np.asarray(run((weights, order), KEY, images))
  assert got.shape == (5, len(order) + 1) and got.dtype == np.int32
  want = logits.argmax(-1).T
  # Rounding decides between two logits that are as good as equal.
  first, second = np.sort(logits, -1)[..., -1].T, np.sort(logits, -1)[..., -2].T
  clear = first - second > 1e-4
  assert clear.mean() > 0.9 and len(np.unique(want)) > 1
  np.testing.assert_array_equal(got[clear], want[clear])


def test_the_batch_is_cut_over_devices():
  model, weights, images, order = network("cnn")
  both = [
    batching.over_images(
      predict_prefixes(model, "conv_2"), 4, sharding.make_mesh(devices)
    )((weights, order), KEY, images)
    for devices in (jax.devices()[:1], jax.devices()[:4])
  ]
  np.testing.assert_array_equal(*both)


def test_by_hand():
  """Two channels at one position; z = F W + b, logits = relu(z)."""
  kernel = jnp.array([[1.0, 0.0], [-3.0, 2.0]])
  bias = jnp.array([0.5, -1.0])

  def linear(params, batch_stats, x):
    return x[:, 0, 0] @ params["kernel"] + params["bias"][None]

  def rest(params, batch_stats, z):
    return jnp.maximum(z, 0.0)

  def of_channel(params, channel, channels):
    assert channels == 2
    row = params["kernel"][channel][None]
    return {"kernel": row, "bias": jnp.zeros(2)}

  split_head = SplitHead(linear, rest, of_channel)
  model = Model(None, None, None, None, split_head=split_head)
  features = jnp.array([4.0, 1.0]).reshape(1, 1, 1, 2)
  got = over_prefixes(
    model,
    Weights({"kernel": kernel, "bias": bias}, {}),
    features,
    jnp.array([1, 0]),
    lambda logits: logits,
    chunk_size=1,
  )
  # Whole: (4 - 3 + 0.5, 2 - 1); without channel 1: (4.5, -1); without both.
  want = [[[1.5, 1.0]], [[4.5, 0.0]], [[0.5, 0.0]]]
  assert got.tolist() == want


def test_a_head_that_does_not_come_in_two_is_masked():
  model, weights, images, order = network("cnn")
  images = images.astype(np.float32) / 255
  both = [
    jax.jit(predict_prefixes(m, "conv_2"))((weights, order), KEY, images)
    for m in (model, model._replace(split_head=None))
  ]
  np.testing.assert_array_equal(*both)


def test_bfloat16_sums_in_float32():
  model, weights, images, order = network("minivgg")
  shape = images.shape[1:]
  low = models.get(
    "minivgg", image_shape=shape, num_classes=10, width=4, precision="bfloat16"
  )
  features, want = _direct(model, weights, images, order)
  # Flax's layers mix dtypes.
  with jax.numpy_dtype_promotion("standard"):
    got = over_prefixes(
      low, weights, features.astype(jnp.bfloat16), order, lambda x: x, 4
    )
  assert got.dtype == jnp.float32
  scale = np.abs(want).max()
  np.testing.assert_allclose(got, want, atol=0.02 * scale)


def test_chunks_on_an_accelerator_fill_its_share_of_memory(monkeypatch):
  model, weights, images, order = network("cnn")
  features, _ = _direct(model, weights, images, order)
  shapes = jax.eval_shape(model.split_head.linear, *weights, features)
  sum_bytes = 4 * shapes.size
  assert incremental_pruning.default_chunk_size(model, weights, features) == 1
  predict = predict_prefixes(model, "conv_2")
  args = (weights, order), KEY, images.astype(np.float32) / 255
  expected = jax.jit(predict)(*args)
  monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
  for limit, size in ((0, 1), (2 * sum_bytes + 1, 2), (2**28, 4)):
    monkeypatch.setattr(incremental_pruning, "_CHUNK_BYTES", limit)
    got = incremental_pruning.default_chunk_size(model, weights, features)
    assert got == size
  got = jax.jit(lambda *args: predict(*args))(*args)
  np.testing.assert_array_equal(got, expected)
