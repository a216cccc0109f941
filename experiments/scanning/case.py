"""What a scan is of: a network from a file, or a run."""

import pathlib
from typing import Any, NamedTuple

import jax
import numpy as np

from bdjax import data
from bdjax.data.arrays import digests
from bdjax.errors import UserError
from bdjax.models import Model, Weights
from experiments.common.runner import Report
from experiments.defending import config as defending_config
from experiments.defending import delivered, subject


class Case(NamedTuple):
  """What is scanned.

  Attributes:
    info: of the images, with the classes' names; its name is the network's.
    model: takes images in [0,1].
    weights: of the network.
    images: uint8 [N,H,W,C], clean.
    labels: int32 [N], the true ones; None where they are not known.
    network: what is known of it, JSON-ready.
    place: where results go by default.
    accuracy: on the images, by what white is taken for; None where that was
      not tried.
  """

  info: data.Info
  model: Model
  weights: Weights
  images: np.ndarray
  labels: np.ndarray | None
  network: dict[str, Any]
  place: pathlib.Path
  accuracy: dict[float, float] | None = None


def open_case(config: Any, report: Report) -> Case:
  """Opens the network, and the images to scan it with.

  Args:
    config: `experiments.scan.Config`.
    report: takes lines of progress.

  Raises:
    UserError: flags that contradict each other, or files that are not what
      they should be.
  """
  if (config.run is None) == (config.weights is None):
    raise UserError("take --weights=FILE with --images, or --run=runs/NAME")
  case = (_open_run if config.run else _open_file)(config, report)
  if case.info.num_classes < 3:
    raise UserError("an anomaly index takes 3 classes, and there are 2")
  return case


def _open_file(config: Any, report: Report) -> Case:
  for name in ("dataset", "data_dir"):
    if getattr(config, name) is not None:
      raise UserError(f"--{name} goes with --run: leave it out with --weights")
  if config.images is None:
    raise UserError("--images is missing: clean images of the network's kind")
  images = delivered.read_images(config.images)
  network = delivered.open_network(
    config.weights,
    images,
    model=config.model,
    white=config.pixels,
    mean=delivered.numbers(config.mean, "--mean"),
    std=delivered.numbers(config.std, "--std"),
    report=report,
  )
  stem = pathlib.Path(config.weights).stem
  names = tuple(map(str, range(network.num_classes)))
  case = _case(
    stem,
    names,
    "file",
    network.model,
    network.weights,
    images.images,
    images.labels,
    pathlib.Path("runs") / f"scan-{stem}",
    white=network.white,
  )
  return case._replace(accuracy=network.accuracy)


def _open_run(config: Any, report: Report) -> Case:
  for name in ("images", "model", "pixels", "mean", "std"):
    if getattr(config, name) is not None:
      raise UserError(f"--{name} goes with --weights: leave it out with --run")
  chosen = defending_config.Config(
    run=config.run,
    dataset=config.dataset,
    data_source=config.data_source,
    data_dir=config.data_dir,
  )
  defending_config.check(chosen)
  places = subject.members(chosen)
  if len(places) > 1:
    raise UserError(f"a scan takes one run: for instance --run={places[0]}")
  found = subject.load(chosen, places[0], report)
  defender = found.defender
  place = places[0].resolve()
  name = place.name
  if name.startswith("seed-"):  # of a group
    name = f"{place.parent.name}/{name}"
  return _case(
    name,
    defender.class_names,
    found.splits.info.source,
    defender.model,
    defender.weights,
    *jax.device_get((defender.images, defender.labels)),
    places[0] / "defenses" / "scan",
  )


def _case(name, names, source, model, weights, images, labels, place, **more):
  known = np.zeros(0, np.int32) if labels is None else labels
  sha256 = digests(data.Dataset(images, known))
  shape = images.shape[3:]
  info = data.Info(
    name,
    len(names),
    names,
    source,
    sha256,
    (0.0,) * shape[0],
    (1.0,) * shape[0],
  )
  network = {
    "name": name,
    "weights_crc32": subject.checksum(weights),
    "images": sha256,
    **more,
  }
  return Case(info, model, weights, images, labels, network, place)
