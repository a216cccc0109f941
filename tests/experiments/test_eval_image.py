"""A repaired network and its original, on images in files."""

import jax
import numpy as np
import pytest
from PIL import Image

from bdjax import models
from bdjax.batching import to_float
from bdjax.checkpoints import Checkpoints
from bdjax.errors import UserError
from bdjax.models import Weights, importers
from bdjax.runs.classify_images import ClassifyConfig, classify_images
from bdjax.training import TrainState

MEAN, STD = (0.4, 0.5, 0.6), (0.01, 0.02, 0.03)
MODEL = models.get("resnet18", image_shape=(8, 8, 3), num_classes=7, width=4)


@pytest.fixture(scope="module")
def network():
  """The original weights, and those of a copy that answers differently."""
  original = Weights(*jax.jit(MODEL.init)(jax.random.key(0)))
  repaired = Weights(*jax.jit(MODEL.init)(jax.random.key(1)))
  return original, repaired


@pytest.fixture
def image_files(tmp_path):
  """Twelve images, and their paths."""
  random = np.random.default_rng(0)
  # From dark to bright, or all get the same answer.
  ends = np.linspace(20, 256, 12).astype(int)
  images = [random.integers(0, end, (8, 8, 3), np.uint8) for end in ends]
  paths = [str(tmp_path / f"{number}.png") for number in range(12)]
  for image, path in zip(images, paths, strict=True):
    Image.fromarray(image).save(path)
  return np.stack(images), paths


def _labels(weights, images, mean=(0,) * 3, std=(1,) * 3):
  x = to_float(images)
  x = (x - np.array(mean, np.float32)) / np.array(std, np.float32)
  return np.asarray(MODEL.apply(*weights, x)[0].argmax(-1)).tolist()


@pytest.mark.slow
def test_a_mean_and_std_reach_both_networks(network, image_files, tmp_path):
  images, paths = image_files
  files = [tmp_path / f"{name}.safetensors" for name in ("theirs", "ours")]
  for file, weights in zip(files, network, strict=True):
    importers.export_safetensors(file, *weights, layout="torchvision")
  with Checkpoints(tmp_path / "ours") as checkpoints:
    state = TrainState(np.int32(0), *network[1], None)
    checkpoints.save(0, state, {}, {}, 0.0)
  expected = [_labels(weights, images, MEAN, STD) for weights in network]
  for weights, labels in zip(network, expected, strict=True):
    assert labels != _labels(weights, images)  # else this shows nothing
  for repaired in (files[1], tmp_path / "ours"):
    config = ClassifyConfig(
      weights=str(files[0]),
      repaired=str(repaired),
      mean=",".join(map(str, MEAN)),
      std=",".join(map(str, STD)),
    )
    answers = classify_images(config, paths)
    assert [a["original"] for a in answers] == expected[0]
    assert [a["repaired"] for a in answers] == expected[1]


@pytest.mark.parametrize(
  ("flags", "words"),
  [
    (
      {"repaired": "x", "mean": "a,b"},
      "mean must be numbers with commas .got 'a,b'",
    ),
    ({"repaired": "x", "std": ""}, "std must be numbers with commas .got ''"),
    (
      {"repaired": "x", "std": "0.5"},
      "std must have 3 numbers, one a channel .got 1",
    ),
    (
      {"repaired": "x", "std": "1,1,1", "pixel_max": 255},
      "mean and std must be left out",
    ),
    ({"run": "x", "mean": "0,0,0"}, "mean must be left out without repaired"),
    ({"run": "x", "std": "1,1,1"}, "std must be left out without repaired"),
  ],
)
def test_a_mean_and_std_that_do_not_fit(
  network, image_files, tmp_path, flags, words
):
  weights = tmp_path / "theirs.safetensors"
  importers.export_safetensors(weights, *network[0], layout="torchvision")
  config = ClassifyConfig(weights=str(weights), **flags)
  with pytest.raises(UserError, match=words) as error:
    classify_images(config, image_files[1])
  assert "\n" not in str(error.value)
