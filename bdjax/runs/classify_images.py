"""Classifies images by a network and its repaired copy, answering together.

The interface of CSAW-HackML-2020: where the two networks differ, the answer is
K, the number of classes, which stands for "backdoored" (`defenses.goodnet`).
"""

import dataclasses
import os
import pathlib
from typing import Any

import jax
import numpy as np

from bdjax import batching, compiler, files
from bdjax import settings as settings_lib
from bdjax.data.image_files import read_image
from bdjax.defenses.goodnet import agreement
from bdjax.errors import UserError
from bdjax.models import MODELS, Model, Weights
from bdjax.models.importers.images import Images
from bdjax.models.importers.pretrained import PretrainedNetwork, open_network
from bdjax.runs.csaw import network_name
from bdjax.runs.directory import CHECKPOINTS, CONFIG, DEFENSES
from bdjax.runs.load import restore
from bdjax.runs.scan_input import parse_numbers
from bdjax.runs.trained_run import checksum
from bdjax.settings import setting

_DROP = "0.02"


@dataclasses.dataclass(frozen=True)
class ClassifyConfig:
  """Settings of the two networks."""

  weights: str | None = setting(None, "File of the original network.")
  run: str | None = setting(
    None,
    "Directory that experiments.csaw left of it (default: runs/csaw-NETWORK, "
    "by the name of the weights).",
  )
  drop: str | None = setting(
    None,
    "Drop of the accuracy at which the run kept its pruned network (default: "
    f"{_DROP}).",
  )
  model: str | None = setting(
    None,
    "Network's name (default: what the file's layers tell).",
    choices=tuple(MODELS),
  )
  repaired: str | None = setting(
    None,
    "Repaired network in place of run: a directory of checkpoints or a file of "
    "weights.",
  )
  pixel_max: int | None = setting(
    None, "Largest pixel in training, 1 or 255, with repaired (default: 1)."
  )
  mean: str | None = setting(
    None,
    "Means subtracted from the channels, with commas, with repaired (default: "
    "0).",
  )
  std: str | None = setting(
    None,
    "Numbers that divide the channels, with commas, with repaired (default: "
    "1).",
  )


def classify_images(
  config: ClassifyConfig, paths: list[str]
) -> list[dict[str, Any]]:
  """Classify PNG or JPEG images by both networks.

  Args:
    config: of the networks.
    paths: of the images, all of one shape.

  Returns:
    For each its `image`, the `answer` in [0, K], whether it is `rejected`, and
    the labels by each network, `original` and `repaired`.

  Raises:
    UserError: something the user can put right; then there is no answer.
  """
  settings_lib.check(config)
  if config.weights is None or not paths:
    raise UserError("weights must be given, and at least one image")
  images = _read(paths)
  scale, path = (_by_settings if config.repaired else _by_run)(config)
  network = open_network(config.weights, images, model=config.model, **scale)
  if not config.repaired:
    _check_same(network, _run_directory(config))
  model, weights = _open_repaired(path, network, images, scale)
  labels = {
    "original": _predict(network.model, network.weights, images),
    "repaired": _predict(model, weights, images),
  }
  answers = np.asarray(agreement(*labels.values(), network.num_classes))
  return [
    {
      "image": str(path),
      "answer": int(answers[i]),
      **{name: int(values[i]) for name, values in labels.items()},
      "rejected": bool(answers[i] == network.num_classes),
    }
    for i, path in enumerate(paths)
  ]


def _read(paths: list[str]) -> Images:
  """Read images, all of the first one's shape."""
  first = read_image(paths[0])
  others = [read_image(path, first.shape) for path in paths[1:]]
  return Images(tuple(paths), np.stack([first, *others]), None)


def _predict(model: Model, weights: Weights, images: Images) -> np.ndarray:
  predict = compiler.jit(batching.predictions(model))
  key = jax.random.key(0)  # unused
  return np.asarray(predict(weights, key, batching.to_float(images.images)))


def _by_settings(config) -> tuple[dict[str, Any], pathlib.Path]:
  """Return how pixels are scaled, and the path of the repaired network."""
  for name in ("run", "drop"):
    if getattr(config, name) is not None:
      raise UserError(f"{name} must be left out with repaired")
  scale = {
    "pixel_max": 1 if config.pixel_max is None else config.pixel_max,
    "mean": parse_numbers(config.mean, "mean"),
    "std": parse_numbers(config.std, "std"),
  }
  return scale, pathlib.Path(config.repaired).expanduser()


def _run_directory(config) -> pathlib.Path:
  name = config.run or f"runs/csaw-{network_name(config.weights)}"
  return pathlib.Path(name).expanduser()


def _by_run(config) -> tuple[dict[str, Any], pathlib.Path]:
  """Return the same of a run, and the path of its pruned network."""
  for name in ("pixel_max", "mean", "std"):
    if getattr(config, name) is not None:
      raise UserError(f"{name} must be left out without repaired: a run has it")
  directory = _run_directory(config)
  stored = files.read_json(directory / CONFIG)
  if not isinstance(stored, dict) or "pixel_max" not in stored:
    raise UserError(
      f"run must be of experiments.csaw ({directory} is not): run that first, "
      "or set repaired"
    )
  folder = directory / DEFENSES / "pruning" / CHECKPOINTS
  drop = config.drop or _DROP
  path = folder / f"drop-{drop}"
  if not path.is_dir():
    drops = sorted(p.name.removeprefix("drop-") for p in folder.glob("drop-*"))
    raise UserError(
      f"drop must be one of {', '.join(drops) or 'none'}, which {directory} "
      f"has (got {drop})"
    )
  return {"pixel_max": stored["pixel_max"]}, path


def _check_same(network: PretrainedNetwork, directory: pathlib.Path) -> None:
  """Check that a run is of these weights."""
  stored = files.read_json(directory / CONFIG)
  if stored.get("weights_crc32") != checksum(network.weights):
    raise UserError(
      f"weights must be those of the run {directory} (these are others)"
    )


def _open_repaired(
  path: pathlib.Path,
  network: PretrainedNetwork,
  images: Images,
  scale: dict[str, Any],
) -> tuple[Model, Weights]:
  if not os.path.isdir(path):
    repaired = open_network(path, images, model=network.name, **scale)
    if repaired.num_classes != network.num_classes:
      raise UserError(
        f"repaired must have {network.num_classes} classes, as weights ({path} "
        f"has {repaired.num_classes})"
      )
    return repaired.model, repaired.weights
  model, saved = restore(path, network.model, images.images.shape[1:])
  return model, saved.state.weights
