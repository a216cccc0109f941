"""What a defence is as an experiment, and what it is given and gives."""

import os
import pathlib
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import numpy as np

from bdjax.checkpoints import Checkpoints
from bdjax.models import Weights
from bdjax.training import TrainState
from experiments.common.runner import Report
from experiments.defending.config import Config
from experiments.defending.exam import Exam
from experiments.defending.pieces import progress
from experiments.defending.subject import Defender, Subject


class Space(NamedTuple):
  """Where a defence leaves files, and whom it tells how far it is.

  Attributes:
    directory: holds `results.json` in the end; what is kept for a restart
      goes to `checkpoints/`, pictures to `figures/`.
    report: takes one line.
    key: the defence's own randomness.
  """

  directory: pathlib.Path
  report: Report
  key: jax.Array

  def figure(self, name: str) -> pathlib.Path:
    """The path of a picture."""
    folder = self.directory / "figures"
    folder.mkdir(exist_ok=True)
    return folder / f"{name}.png"

  def save(self, name: str, weights: Weights) -> None:
    """Keeps a repaired network, `checkpoints/NAME`, as training would."""
    state = TrainState(np.int32(0), *weights, None)
    with Checkpoints(self.directory / "checkpoints" / name) as checkpoints:
      if checkpoints.latest_step() is None:
        checkpoints.save(0, state, {}, {}, 0.0)

  def save_arrays(self, name: str, **arrays: np.ndarray) -> None:
    """Writes `NAME.npz`, whole or not at all."""
    path = self.directory / f"{name}.npz"
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
      with open(partial, "wb") as file:
        np.savez_compressed(file, **arrays)
      os.replace(partial, path)
    finally:
      partial.unlink(missing_ok=True)

  def progress(self, items: Iterable, unit: str) -> Iterable:
    """Goes through items with a progress bar, on a terminal."""
    return progress(items, unit)


class Findings(NamedTuple):
  """What goes into `results.json`.

  Attributes:
    measured: name -> `metrics.Score`, a number, or a list of them by class.
    details: the rest, JSON-ready.
    reported: what the literature reports, names as in `measured`.
  """

  measured: dict[str, Any]
  details: dict[str, Any] = {}
  reported: dict[str, float] = {}


class Defense(NamedTuple):
  """A defence as an experiment.

  Attributes:
    name: of its script and its results.
    config: the class of its configuration.
    defend: `(defender, config, space) -> found`: the defence itself. It has
      the network and the defender's data, and nothing else.
    examine: `(found, defender, exam, config, space) -> Findings`: scores on
      test images, and figures.
    eval_images: test images to score on, unless the flag says; None: all.
    variant: what is added to the name of a form of the defence other than
      its first, for its results to lie apart.
    amend: `(results, subject, config, report) -> results`: adds to the
      results of a run what compares it with others; also where these were
      there before.
  """

  name: str
  config: type[Config]
  defend: Callable[[Defender, Config, Space], Any]
  examine: Callable[[Any, Defender, Exam, Config, Space], Findings]
  eval_images: int | None = None
  variant: Callable[[Config], str] = lambda config: ""
  amend: Callable[[dict[str, Any], Subject, Config, Report], dict[str, Any]] = (
    lambda out, subject, config, report: out
  )
