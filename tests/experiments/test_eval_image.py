import jax
import numpy as np
import pytest
from PIL import Image

from bdjax import models
from bdjax.checkpoints import Checkpoints
from bdjax.errors import UserError
from bdjax.models import Weights, importers
from bdjax.training import TrainState
from experiments import eval_image

MEAN, STD = (0.4, 0.5, 0.6), (0.01, 0.02, 0.03)
MODEL = models.get("resnet18", image_shape=(8, 8, 3), num_classes=7, width=4)


@pytest.fixture(scope="module")
def network():
  """Weights as delivered, and those of a copy that says something else."""
  delivered = Weights(*jax.jit(MODEL.init)(jax.random.key(0)))
  repaired = Weights(*jax.jit(MODEL.init)(jax.random.key(1)))
  return delivered, repaired


@pytest.fixture
def pictures(tmp_path):
  """Twelve pictures, and their paths."""
  random = np.random.default_rng(0)
  # From dark to bright, or all get the same answer.
  ends = np.linspace(20, 256, 12).astype(int)
  images = [random.integers(0, end, (8, 8, 3), np.uint8) for end in ends]
  paths = [str(tmp_path / f"{number}.png") for number in range(12)]
  for image, path in zip(images, paths, strict=True):
    Image.fromarray(image).save(path)
  return np.stack(images), paths


def _labels(weights, images, mean=(0,) * 3, std=(1,) * 3):
  x = images.astype(np.float32) / np.float32(255)
  x = (x - np.array(mean, np.float32)) / np.array(std, np.float32)
  return np.asarray(MODEL.apply(*weights, x, False)[0].argmax(-1)).tolist()


def test_a_mean_and_std_reach_both_networks(network, pictures, tmp_path):
  images, paths = pictures
  files = [tmp_path / f"{name}.safetensors" for name in ("theirs", "ours")]
  for file, weights in zip(files, network, strict=True):
    importers.export_safetensors(file, *weights, layout="torchvision")
  with Checkpoints(tmp_path / "ours") as checkpoints:
    state = TrainState(np.int32(0), *network[1], None)
    checkpoints.save(0, state, {}, {}, 0.0)
  wanted = [_labels(weights, images, MEAN, STD) for weights in network]
  for weights, labels in zip(network, wanted, strict=True):
    assert labels != _labels(weights, images)  # else this shows nothing
  for repaired in (files[1], tmp_path / "ours"):
    config = eval_image.Config(
      weights=str(files[0]),
      repaired=str(repaired),
      mean=",".join(map(str, MEAN)),
      std=",".join(map(str, STD)),
    )
    found = eval_image.run(config, paths)
    assert [each["delivered"] for each in found] == wanted[0]
    assert [each["repaired"] for each in found] == wanted[1]


@pytest.mark.parametrize(
  ("flags", "words"),
  [
    ({"repaired": "x", "mean": "a,b"}, "--mean=a,b are no numbers"),
    ({"repaired": "x", "std": ""}, "--std= are no numbers"),
    ({"repaired": "x", "std": "0.5"}, "1 numbers for 3 channels"),
    (
      {"repaired": "x", "std": "1,1,1", "pixels": 255},
      "a mean and std are of pixels in 0..1",
    ),
    ({"run": "x", "mean": "0,0,0"}, "--mean goes with --repaired"),
    ({"run": "x", "std": "1,1,1"}, "--std goes with --repaired"),
  ],
)
def test_a_mean_and_std_that_do_not_fit(
  network, pictures, tmp_path, flags, words
):
  weights = tmp_path / "theirs.safetensors"
  importers.export_safetensors(weights, *network[0], layout="torchvision")
  config = eval_image.Config(weights=str(weights), **flags)
  with pytest.raises(UserError, match=words) as error:
    eval_image.run(config, pictures[1])
  assert "\n" not in str(error.value)
