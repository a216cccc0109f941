"""A network of CSAW-HackML-2020 and its image sets, as a subject."""

import os
import pathlib
from typing import Any, NamedTuple

import numpy as np

from bdjax import data, sharding
from bdjax.data import csaw
from bdjax.data.arrays import digests
from bdjax.errors import UserError
from bdjax.models import importers
from experiments.common import config as attack_config
from experiments.common.runner import Report
from experiments.defending.delivered import Images, open_network
from experiments.defending.subject import Defender, Given, Subject


class Challenge(NamedTuple):
  """One of the challenge's networks.

  Attributes:
    subject: with its test sets, clean and triggered.
    validation: the same with its validation sets, of which only `lab3` has
      a triggered one.
    white: what white was in its training, 1.0 or 255.0.
    accuracy: by white; None where the user said which it is.
  """

  subject: Subject
  validation: Subject
  white: float
  accuracy: dict[float, float] | None

  def identity(self) -> dict[str, Any]:
    """Which network, and which images."""
    info = self.subject.splits.info
    return {
      "network": info.name,
      "white": self.white,
      "sha256": info.sha256,
      **self.subject.identity(),
    }


def network_name(weights: str | os.PathLike, wanted: str | None = None) -> str:
  """Which of the challenge's networks a file is, a key of `csaw.NETWORKS`.

  Args:
    weights: the file, whose name begins with the network's.
    wanted: what the user says, which goes before the name.

  Raises:
    UserError: it is none of them.
  """
  stem = pathlib.Path(weights).name
  known = csaw.NETWORKS
  name = wanted or next((n for n in known if stem.startswith(n)), None)
  if name not in known:
    told = f"--network={wanted}" if wanted else f"the name {stem}"
    raise UserError(
      f"{told} is none of the challenge's networks: say which of "
      f"{', '.join(known)} it is"
    )
  return name


def load(
  weights: str | os.PathLike,
  data_dir: str | os.PathLike,
  name: str,
  report: Report,
  white: float | None = None,
) -> Challenge:
  """Reads a network of the challenge and all of its sets.

  Args:
    weights: its file.
    data_dir: of the sets, see `csaw.find`.
    name: a key of `csaw.NETWORKS`.
    report: takes lines of progress.
    white: 1.0 or 255.0; None to tell it from the validation set.

  Raises:
    UserError: a file is missing, or is not what it should be.
  """
  importers.read(weights)  # what is wrong with it, before gigabytes are read
  sets = csaw.NETWORKS[name]
  paths = csaw.find(data_dir, sets.needed)
  read = {}
  for key in sets.needed:
    report(f"reading {paths[key]}")
    read[key] = csaw.read(paths[key])
  validation = read[sets.validation]
  network = open_network(
    weights,
    Images((), *validation),
    model="deepid",
    white=white,
    report=report,
  )
  classes = csaw.NUM_CLASSES
  info = data.Info(
    name=f"csaw-{name}",
    num_classes=classes,
    class_names=tuple(map(str, range(classes))),
    source="file",
    sha256={
      f"{key}/{field}": digest
      for key, part in read.items()
      for field, digest in digests(part).items()
    },
    mean=(0.0,) * 3,
    std=(1 / network.white,) * 3,
  )
  mesh = sharding.make_mesh()
  defender = Defender(
    network.model,
    sharding.replicate(mesh, network.weights),
    *sharding.replicate(mesh, tuple(validation)),
    info.class_names,
    mesh,
  )

  def subject(test, triggered):
    return Subject(
      directory=pathlib.Path(info.name),
      config=attack_config.Config("csaw"),
      step=0,
      defender=defender,
      attack=None,
      generator={},
      splits=data.Splits(validation, validation, read[test], info),
      given=_given(triggered, sets.targets, read),
    )

  return Challenge(
    subject(sets.test, sets.triggered),
    subject(sets.validation, sets.triggered_validation),
    network.white,
    network.accuracy,
  )


def _given(
  triggered: dict[str, str],
  targets: dict[str, int],
  read: dict[str, data.Dataset],
) -> Given | None:
  """Triggered sets, one after the other."""
  if not triggered:
    return None
  parts = [read[key] for key in triggered.values()]
  which = np.repeat(
    np.arange(len(parts), dtype=np.int32), [len(p.labels) for p in parts]
  )
  wanted = np.array([targets[trigger] for trigger in triggered], np.int32)
  images = np.concatenate([part.images for part in parts])
  return Given(images, wanted[which], which, tuple(triggered))
