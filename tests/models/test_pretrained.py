import logging

import jax
import numpy as np
import pytest
from PIL import Image

from bdjax import models
from bdjax.errors import UserError
from bdjax.models import importers
from bdjax.models.importers.images import Images, read_images
from bdjax.models.importers.pretrained import by_pixel_max, open_network

PIXELS = np.random.default_rng(0).integers(0, 256, (12, 8, 8, 3), np.uint8)


def _images(labels=None, pixels=PIXELS):
  names = tuple(map(str, range(len(pixels))))
  return Images(names, pixels, labels)


def _predict(model, weights, pixels):
  x = pixels.astype(np.float32) / np.float32(255)
  return np.asarray(model.apply(*weights, x)[0].argmax(-1), np.int32)


@pytest.fixture(scope="module")
def resnet(tmp_path_factory):
  """A small network, and its file in PyTorch's names."""
  model = models.get("resnet18", image_shape=(8, 8, 3), num_classes=7, width=4)
  weights = models.Weights(*model.init(jax.random.key(0)))
  # A bias that decides where the image is dark, and not where it is bright.
  weights.params["logits"]["bias"] += np.arange(7, dtype=np.float32)
  path = tmp_path_factory.mktemp("weights") / "theirs.safetensors"
  importers.export_safetensors(path, *weights, layout="torchvision")
  return model, weights, path


def _logged(caplog):
  return [r.getMessage() for r in caplog.records if "pretrained" in r.name]


@pytest.mark.slow
def test_model_classes_and_width_are_those_of_the_file(resnet, caplog):
  caplog.set_level(logging.INFO)
  model, weights, path = resnet
  network = open_network(path, _images())
  assert not _logged(caplog) and by_pixel_max(network.accuracy) is None
  assert (network.name, network.num_classes) == ("resnet18", 7)
  assert (network.pixel_max, network.accuracy) == (1.0, None)
  jax.tree.map(np.testing.assert_array_equal, network.weights, weights)
  np.testing.assert_array_equal(
    _predict(network.model, network.weights, PIXELS),
    _predict(model, weights, PIXELS),
  )


@pytest.mark.slow
@pytest.mark.parametrize("name", ["airbench", "resnet10"])
def test_a_model_is_identified_by_its_layers(tmp_path, name):
  pixels = np.random.default_rng(1).integers(0, 256, (2, 9, 9, 3), np.uint8)
  model = models.get(name, image_shape=(9, 9, 3), num_classes=4, width=8)
  weights = models.Weights(*jax.jit(model.init)(jax.random.key(0)))
  importers.export_safetensors(tmp_path / "a.safetensors", *weights)
  network = open_network(tmp_path / "a.safetensors", _images(pixels=pixels))
  assert (network.name, network.num_classes) == (name, 4)
  jax.tree.map(np.testing.assert_array_equal, network.weights, weights)


@pytest.mark.slow
def test_the_range_of_pixels_is_the_one_that_fits_the_labels(resnet, caplog):
  caplog.set_level(logging.INFO)
  _, weights, path = resnet
  for high in (1.0, 255.0):
    scaled = models.get(
      "resnet18",
      image_shape=(8, 8, 3),
      num_classes=7,
      width=4,
      std=(1 / high,) * 3,
    )
    labels = _predict(scaled, weights, PIXELS)
    caplog.clear()
    network = open_network(path, _images(labels))
    assert network.pixel_max == high
    assert network.accuracy[high] == 1.0
    assert network.accuracy[256.0 - high] < 1.0
    shares = by_pixel_max(network.accuracy)
    assert list(shares) == ["1", "255"]
    assert shares[f"{high:g}"] == 1.0
    of_1, of_255 = (f"{share:.2%}" for share in shares.values())
    assert _logged(caplog) == [
      f"largest pixel {high:g}: clean accuracy {of_1} with 1, {of_255} with 255"
    ]


def test_a_mean_and_std_are_subtracted_and_divided_by(resnet):
  model, weights, path = resnet
  network = open_network(path, _images(), mean=(0.1,) * 3, std=(0.5,) * 3)
  x = PIXELS.astype(np.float32) / np.float32(255)
  got, _ = network.model.apply(*network.weights, x)
  wanted, _ = model.apply(*weights, (x - 0.1) / 0.5)
  np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
  ("labels", "options", "words"),
  [
    ([7] * 12, {}, r"labels must be below 7, the network's classes \(got 7\)"),
    (None, {"model": "cnn"}, "missing"),
    (None, {"model": "deepid"}, "not weights of deepid"),
    (None, {"pixel_max": 3.0}, "must be 1 or 255"),
    (None, {"pixel_max": 255.0, "mean": (0.5,) * 3}, "pixels in 0..1"),
    (
      None,
      {"mean": (0.5,) * 2},
      r"mean must have 3 numbers, one a channel \(got 2\)",
    ),
    (None, {"mean": (0.5, 0.5, float("nan"))}, "mean must be finite"),
    (None, {"model": "foo"}, "model must be one of airbench, .*got 'foo'"),
    (None, {"std": (0.5, 0.5, 0.0)}, "std must be positive"),
  ],
)
def test_what_does_not_fit(resnet, labels, options, words):
  labels = None if labels is None else np.array(labels, np.int32)
  with pytest.raises(UserError, match=words):
    open_network(resnet[2], _images(labels), **options)


def test_layers_that_identify_no_model(tmp_path):
  model = models.get("cnn", image_shape=(8, 8, 1), num_classes=3, width=4)
  path = tmp_path / "cnn.safetensors"
  weights = models.Weights(*model.init(jax.random.key(0)))
  importers.export_safetensors(path, *weights)
  images = _images(pixels=PIXELS[..., :1])
  with pytest.raises(UserError, match="the model must be given"):
    open_network(path, images)
  assert open_network(path, images, model="cnn").num_classes == 3


def test_batch_normalisation_is_that_of_the_file(tmp_path):
  model = models.get(
    "cnn", image_shape=(8, 8, 1), num_classes=3, width=4, batch_norm=True
  )
  weights = models.Weights(*jax.jit(model.init)(jax.random.key(0)))
  path = tmp_path / "cnn.safetensors"
  importers.export_safetensors(path, *weights)
  network = open_network(path, _images(pixels=PIXELS[..., :1]), model="cnn")
  jax.tree.map(np.testing.assert_array_equal, network.weights, weights)


def test_images_are_read_from_folders_and_arrays(tmp_path):
  folder = tmp_path / "faces"
  folder.mkdir()
  for number in range(3):
    name = f"{number}_label_{number + 4}.png"
    Image.fromarray(PIXELS[number]).save(folder / name)
  found = read_images(folder)
  np.testing.assert_array_equal(found.images, PIXELS[:3])
  assert found.labels.tolist() == [4, 5, 6]
  np.savez(tmp_path / "all.npz", images=PIXELS, labels=np.arange(12))
  found = read_images(tmp_path / "all.npz")
  np.testing.assert_array_equal(found.images, PIXELS)
  assert found.labels.tolist() == list(range(12))
  np.savez(tmp_path / "bare.npz", images=PIXELS)
  assert read_images(tmp_path / "bare.npz").labels is None
  with pytest.raises(UserError, match=r"must be \[9, 9, 3\]"):
    read_images(tmp_path / "bare.npz", (9, 9, 3))
  np.savez(tmp_path / "odd.npz", images=PIXELS, labels=np.arange(11))
  with pytest.raises(UserError, match="11 labels for 12 images"):
    read_images(tmp_path / "odd.npz")
  np.savez(tmp_path / "none.npz", pictures=PIXELS)
  with pytest.raises(UserError, match="no images among its keys"):
    read_images(tmp_path / "none.npz")
