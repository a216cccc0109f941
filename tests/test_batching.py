"""Tests of functions mapped over images of any number."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bdjax import batching, models, sharding
from bdjax.models import Weights

KEY = jax.random.key(5)
IMAGES = jax.random.randint(KEY, (21, 8, 8, 1), 0, 256).astype(jnp.uint8)


@pytest.fixture(scope="module")
def network():
  model = models.get("cnn", image_shape=(8, 8, 1), num_classes=4, width=4)
  weights = Weights(*jax.jit(model.init)(KEY))
  images = np.asarray(IMAGES, np.float32) / 255
  logits, _ = jax.jit(model.apply)(*weights, images)
  return model, weights, np.asarray(logits).argmax(1)


def test_images_as_numbers_and_back():
  images = jnp.arange(256).astype(jnp.uint8)
  floats = batching.to_float(images)
  assert floats.dtype == jnp.float32
  np.testing.assert_allclose(floats, np.arange(256) / 255, rtol=1e-6)
  np.testing.assert_array_equal(batching.to_uint8(floats), images)
  values = jnp.array([-0.5, 0.3 / 255, 0.7 / 255, 254.6 / 255, 1.5])
  got = batching.to_uint8(values)
  assert got.dtype == jnp.uint8 and got.tolist() == [0, 0, 1, 255, 255]


@pytest.mark.parametrize("batch", [4, 8, 64])
@pytest.mark.parametrize("devices", [1, 4])
def test_predict_equals_the_network_whatever_the_batch(network, batch, devices):
  model, weights, expected = network
  mesh = sharding.make_mesh(jax.devices()[:devices])
  predict = batching.predict(model, batch, mesh)
  got = predict(weights, sharding.replicate(mesh, IMAGES))
  assert got.dtype == jnp.int32
  np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("batch", [4, 64])
def test_over_images_keeps_rows_and_gives_each_batch_a_key(batch):
  mesh = sharding.make_mesh()

  def function(scale, key, images):
    noise = jax.random.uniform(key)
    return scale * images.mean((1, 2, 3)), jnp.full(images.shape[0], noise)

  run = batching.over_images(function, batch, mesh)
  means, noise = run(jnp.float32(2), KEY, sharding.replicate(mesh, IMAGES))
  expected = 2 * np.asarray(IMAGES, np.float32).mean((1, 2, 3)) / 255
  np.testing.assert_allclose(means, expected, rtol=1e-5)
  assert len(np.unique(noise)) == -(-21 // batch)
  again, _ = run(jnp.float32(2), KEY, sharding.replicate(mesh, IMAGES))
  np.testing.assert_array_equal(means, again)


def test_map_batches_hands_on_other_arrays_and_the_batch_s_number():
  mesh = sharding.make_mesh(jax.devices()[:1])

  def one_batch(number, images, rows, weights):
    assert images.shape == (8, 8, 8, 1) and images.dtype == jnp.float32
    return {"rows": rows, "number": jnp.full(8, number), "weights": weights}

  rows = jnp.arange(21, dtype=jnp.int32)
  arrays = IMAGES, rows, jnp.stack([rows, rows + 1], 1)
  out = jax.jit(
    functools.partial(batching.map_batches, one_batch, batch_size=8, mesh=mesh)
  )(arrays)
  np.testing.assert_array_equal(out["rows"], rows)
  np.testing.assert_array_equal(out["number"], np.arange(21) // 8)
  assert out["weights"].shape == (21, 2)


@pytest.mark.parametrize("total", [1, 499, 500, 1203])
def test_map_in_chunks_by_hand(total):
  keys, lengths = [], []

  def call(key, rows):
    keys.append(jax.random.key_data(key).tobytes())
    lengths.append(rows.stop - rows.start)
    numbers = jnp.arange(rows.start, rows.stop)
    return {"number": numbers, "pair": jnp.stack([numbers, -numbers], 1)}

  out = batching.map_in_chunks(call, KEY, total)
  np.testing.assert_array_equal(out["number"], np.arange(total))
  np.testing.assert_array_equal(out["pair"][:, 1], -np.arange(total))
  assert isinstance(out["number"], np.ndarray)  # on the host
  assert sum(lengths) == total and max(lengths) <= 500
  assert len(set(keys)) == len(keys) == -(-total // 500)


def test_progress_shows_nothing_where_nobody_looks(capsys):
  assert list(batching.progress(range(3), "image")) == [0, 1, 2]
  assert capsys.readouterr().err == ""
