"""What a repaired network says of pictures: a class, or K for "backdoored".

python -m experiments.eval_image --weights=lab3_bd_weights.h5 face.png

The interface of CSAW-HackML-2020: the network as delivered and its pruned copy
answer together, as GoodNet; where they differ, the answer is K, the number of
classes. The pruned copy is what `experiments.csaw` left in its run, or
`--repaired`. One picture gives a number, several a line each.
"""

import dataclasses
import json
import os
import pathlib
from typing import Any

import numpy as np

from bdjax import compiler
from bdjax.data import folders
from bdjax.defenses.goodnet import goodnet
from bdjax.errors import UserError
from bdjax.models import Model, Weights
from experiments.common.cli import serve
from experiments.common.rundir import read_json
from experiments.common.runner import quiet
from experiments.defending import flag
from experiments.defending.challenge import network_name
from experiments.defending.delivered import (
  Images,
  Network,
  numbers,
  open_network,
)
from experiments.defending.subject import checksum, restore


@dataclasses.dataclass(frozen=True)
class Config:
  """Flags of the script."""

  weights: str | None = flag(None, "The network as delivered.")
  run: str | None = flag(
    None,
    "What experiments.csaw left of it (default: runs/csaw-NETWORK, by the name "
    "of the weights).",
  )
  drop: str | None = flag(
    None,
    "Which of the run's pruned networks: the fall of its accuracy (default: "
    "0.02).",
  )
  model: str | None = flag(
    None, "The kind of network (default: what the file's layers tell)."
  )
  repaired: str | None = flag(
    None,
    "Instead of --run: the repaired network, a directory of checkpoints or a "
    "file of weights.",
  )
  pixels: int | None = flag(
    None, "With --repaired: what white was in training, 1 or 255 (default: 1)."
  )
  mean: str | None = flag(
    None,
    "With --repaired: subtracted from the channels, with commas (default: 0).",
  )
  std: str | None = flag(
    None,
    "With --repaired: the channels are divided by it, with commas (default: "
    "1).",
  )
  format: str = flag("text", "text or json.")


def run(config: Config, images: list[str]) -> list[dict[str, Any]]:
  """Classifies pictures; importable.

  Args:
    config: the flags.
    images: paths of PNG or JPEG files.

  Returns:
    For each its `image`, the `answer` in [0, K], whether it is `rejected`, and
    what the networks say, `delivered` and `repaired`.

  Raises:
    UserError: something the user can put right; then there is no answer.
  """
  if config.weights is None or not images:
    raise UserError("give --weights=FILE and one picture or more: see --help")
  if config.format not in ("text", "json"):
    raise UserError(f"--format={config.format} is unknown: take text or json")
  pictures = _read(images)
  scale, path = (_from_flags if config.repaired else _from_run)(config)
  network = open_network(config.weights, pictures, model=config.model, **scale)
  if not config.repaired:
    _check_same(network, path)
  model, weights = _open_repaired(path, network, pictures, scale)
  delivered = _labels(network.model, network.weights, pictures)
  repaired = _labels(model, weights, pictures)
  answers = goodnet(delivered, repaired, network.num_classes)
  found = {
    "answer": np.asarray(answers),
    "delivered": delivered,
    "repaired": repaired,
  }
  return [
    {
      "image": str(path),
      **{name: int(values[i]) for name, values in found.items()},
      "rejected": bool(found["answer"][i] == network.num_classes),
    }
    for i, path in enumerate(images)
  ]


def _read(paths: list[str]) -> Images:
  """The pictures, one a path, all of the first one's shape."""
  first = folders.read_image(paths[0])
  others = [folders.read_image(path, first.shape) for path in paths[1:]]
  return Images(tuple(paths), np.stack([first, *others]), None)


def _labels(model: Model, weights: Weights, pictures: Images) -> np.ndarray:
  """What a network says of each picture, int32 [N]."""
  pixels = pictures.images.astype(np.float32) / np.float32(255)
  predict = compiler.jit(
    lambda weights, pixels: model.apply(*weights, pixels, False)[0].argmax(-1)
  )
  return np.asarray(predict(weights, pixels))


def _from_flags(config: Config) -> tuple[dict[str, Any], pathlib.Path]:
  """How pixels are scaled, for `open_network`, and the repaired network."""
  if config.run or config.drop:
    raise UserError("--run and --drop go without --repaired: leave them out")
  scale = {
    "white": 1 if config.pixels is None else config.pixels,
    "mean": numbers(config.mean, "--mean"),
    "std": numbers(config.std, "--std"),
  }
  return scale, pathlib.Path(config.repaired).expanduser()


def _from_run(config: Config) -> tuple[dict[str, Any], pathlib.Path]:
  """The same of a run, and its pruned network."""
  for name in ("pixels", "mean", "std"):
    if getattr(config, name) is not None:
      raise UserError(f"--{name} goes with --repaired: a run knows it")
  name = config.run or f"runs/csaw-{network_name(config.weights)}"
  place = pathlib.Path(name).expanduser()
  stored = read_json(place / "config.json")
  if not isinstance(stored, dict) or "white" not in stored:
    raise UserError(
      f"{place} is no run of experiments.csaw: run that first, or give --run "
      "or --repaired"
    )
  folder = place / "defenses" / "pruning" / "checkpoints"
  drop = config.drop or "0.02"
  path = folder / f"drop-{drop}"
  if not path.is_dir():
    there = ", ".join(
      sorted(p.name.removeprefix("drop-") for p in folder.glob("drop-*"))
    )
    raise UserError(
      f"--drop={drop}: {place} has {there or 'no pruned network'}"
    )
  return {"white": stored["white"]}, path


def _check_same(network: Network, repaired: pathlib.Path) -> None:
  """Checks that the run is of these weights."""
  stored = read_json(repaired.parents[3] / "config.json")
  if stored.get("weights_crc32") != checksum(network.weights):
    raise UserError(
      f"{repaired.parents[3]} is a run of other weights: give its own "
      "--weights, or another --run"
    )


def _open_repaired(
  path: pathlib.Path,
  network: Network,
  pictures: Images,
  scale: dict[str, Any],
) -> tuple[Model, Weights]:
  if not os.path.isdir(path):
    repaired = open_network(path, pictures, model=network.name, **scale)
    if repaired.num_classes != network.num_classes:
      raise UserError(
        f"{path} has {repaired.num_classes} classes and --weights "
        f"{network.num_classes}: give a repaired copy of the same network"
      )
    return repaired.model, repaired.weights
  shape = pictures.images.shape[1:]
  model, found = restore(path, network.model, shape, None, quiet)
  return model, Weights(found.state.params, found.state.batch_stats)


def _print(found: list[dict[str, Any]], how: str) -> None:
  if how == "json":
    print(json.dumps(found, indent=2))
  elif len(found) == 1:
    print(found[0]["answer"])
  else:
    for each in found:
      print(each["answer"], each["image"])


def main() -> None:
  """Runs the script."""

  def start(images, **chosen):
    config = Config(**chosen)
    _print(run(config, images), config.format)

  serve(dataclasses.fields(Config), start, positional="images")


if __name__ == "__main__":
  main()
