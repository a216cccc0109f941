"""The networks of CSAW-HackML-2020 with their image sets, as trained runs."""

import logging
import os
import pathlib
from typing import Any, NamedTuple

import jax
import numpy as np

from bdjax import data, sharding
from bdjax.attacks.base import TriggerVariables
from bdjax.data import csaw
from bdjax.data.arrays import digests
from bdjax.defenses.base import Defender
from bdjax.errors import UserError
from bdjax.evaluation import TriggeredSet
from bdjax.models import importers
from bdjax.models.importers.images import Images
from bdjax.models.importers.pretrained import open_network
from bdjax.runs.config import RunConfig
from bdjax.runs.load import defense_keys
from bdjax.runs.trained_run import TrainedRun

logger = logging.getLogger(__name__)


class CsawNetwork(NamedTuple):
  """One of the challenge's networks.

  Attributes:
    run: with its test sets, clean and triggered.
    validation: the same with its validation sets, of which only `lab3` has a
      triggered one.
    pixel_max: the largest pixel in its training, 1.0 or 255.0.
    accuracy: by largest pixel; None where the user said which it is.
  """

  run: TrainedRun
  validation: TrainedRun
  pixel_max: float
  accuracy: dict[float, float] | None

  @property
  def name(self) -> str:
    """The network's name, a key of `csaw.NETWORKS`."""
    return self.run.splits.info.name.removeprefix("csaw-")

  def identity(self) -> dict[str, Any]:
    """Tell which network and which images these are."""
    info = self.run.splits.info
    return {
      "network": info.name,
      "pixel_max": self.pixel_max,
      "sha256": info.sha256,
      **self.run.identity(),
    }


def network_name(weights: str | os.PathLike, given: str | None = None) -> str:
  """Return which of the challenge's networks a file is.

  Args:
    weights: the file, whose name begins with the network's.
    given: what the user says, which goes before the name.

  Returns:
    A key of `csaw.NETWORKS`.

  Raises:
    UserError: it is none of them.
  """
  stem, known = pathlib.Path(weights).name, csaw.NETWORKS
  name = given or next((n for n in known if stem.startswith(n)), None)
  if name not in known:
    reason = f"got {given}" if given else f"{stem} does not begin with one"
    raise UserError(f"network must be one of {', '.join(known)} ({reason})")
  return name


def load_network(
  weights: str | os.PathLike,
  data_dir: str | os.PathLike,
  name: str,
  pixel_max: float | None = None,
) -> CsawNetwork:
  """Read a network of the challenge and all of its sets.

  Args:
    weights: its file.
    data_dir: of the sets, see `csaw.find`.
    name: a key of `csaw.NETWORKS`.
    pixel_max: 1.0 or 255.0; None to choose by the validation set.

  Raises:
    UserError: a file is missing, or is not what it must be.
  """
  importers.read(weights)  # what is wrong with it, before gigabytes are read
  sets = csaw.NETWORKS[name]
  paths = csaw.find(data_dir, sets.needed)
  read = {}
  for key in sets.needed:
    logger.info("reading %s", paths[key])
    read[key] = csaw.read(paths[key])
  validation = read[sets.validation]
  network = open_network(
    weights, Images((), *validation), model="deepid", pixel_max=pixel_max
  )
  info = _info(name, read, network.pixel_max)
  mesh = sharding.make_mesh()
  defender = Defender(
    network.model,
    sharding.replicate(mesh, network.weights),
    *sharding.replicate(mesh, tuple(validation)),
    info.class_names,
    mesh,
    defense_keys(0, 0)[0],
  )

  def make_run(test: str, triggered: dict[str, str]) -> TrainedRun:
    return TrainedRun(
      directory=pathlib.Path(info.name),
      config=RunConfig(dataset=info.name),
      step=0,
      defender=defender,
      attack=None,
      variables=TriggerVariables({}, {}),
      splits=data.Splits(validation, validation, read[test], info),
      triggered=_triggered(triggered, sets.targets, read),
    )

  return CsawNetwork(
    make_run(sets.test, sets.triggered),
    make_run(sets.validation, sets.triggered_validation),
    network.pixel_max,
    network.accuracy,
  )


def original_scores(network: CsawNetwork) -> dict[str, Any]:
  """Score a network before any defence, on test and validation sets.

  Returns:
    Name -> score, JSON-ready; of the validation sets with `_validation` behind
    the name.
  """
  scores: dict[str, Any] = {}
  for suffix, run in (("", network.run), ("_validation", network.validation)):
    evaluator = run.evaluator(jax.random.key(0))
    measured = evaluator.scores(run.defender.model, run.defender.weights)
    scores |= {f"{name}{suffix}": s._asdict() for name, s in measured.items()}
  return scores


def _info(name, read, pixel_max) -> data.Info:
  """Describe all sets that were read as one data set."""
  return data.Info(
    name=f"csaw-{name}",
    num_classes=csaw.NUM_CLASSES,
    class_names=tuple(map(str, range(csaw.NUM_CLASSES))),
    source="file",
    sha256={
      f"{key}/{field}": digest
      for key, part in read.items()
      for field, digest in digests(part).items()
    },
    mean=(0.0,) * 3,
    std=(1 / pixel_max,) * 3,
  )


def _triggered(
  triggered: dict[str, str],
  targets: dict[str, int],
  read: dict[str, data.Dataset],
) -> TriggeredSet | None:
  """Put triggered sets together, one after the other."""
  if not triggered:
    return None
  parts = [read[key] for key in triggered.values()]
  which = np.repeat(
    np.arange(len(parts), dtype=np.int32), [len(p.labels) for p in parts]
  )
  labels = np.array([targets[trigger] for trigger in triggered], np.int32)
  images = np.concatenate([part.images for part in parts])
  return TriggeredSet(images, labels[which], which, tuple(triggered))
