"""The same defence on clean runs: what a score is when there is no backdoor."""

import dataclasses
import pathlib
from typing import Any

from bdjax.errors import UserError
from experiments.common.runner import Report
from experiments.defending.config import Config
from experiments.defending.defense import Defense
from experiments.defending.runner import run
from experiments.defending.subject import Subject, members, stored_config

# What a clean run must have in common with the run that is examined.
_ALIKE = ("dataset", "model", "width", "stem", "epochs", "augment")


def search(
  defense: Defense,
  config: Config,
  subject: Subject,
  paths: list[str],
  report: Report,
) -> list[dict[str, Any]]:
  """Runs a defence on clean runs, with the flags it has on the subject.

  Args:
    defense: the defence.
    config: as for the subject; what was found before under it is taken.
    subject: the run examined; it is left out where the paths hold it.
    paths: of clean runs, or of groups of them.
    report: takes lines of progress.

  Returns:
    The results of each run.

  Raises:
    UserError: one is no clean run or not like the subject, or none is left.
  """
  found = []
  for path in paths:
    clean = dataclasses.replace(
      config,
      run=path.strip(),
      output=None,
      overwrite=False,
      null_runs=None,
      **dict.fromkeys(
        ("checkpoint", "model", "width", "stem", "defender_fraction")
      ),
    )
    for place in members(clean):
      if place.resolve() != subject.directory.resolve():
        _check(place, subject)
        member = dataclasses.replace(clean, run=str(place))
        found.append(run(defense, member, report))
  if not found:
    raise UserError("--null_runs names no run but the one that is examined")
  return found


def _check(place: pathlib.Path, subject: Subject) -> None:
  null = stored_config(place)
  if null.experiment != "clean":
    raise UserError(f"--null_runs: {place} is not a clean run")
  for name in _ALIKE:
    one, two = getattr(null, name), getattr(subject.config, name)
    if one != two and two is not None:
      raise UserError(
        f"--null_runs: {place} has {name} {one}, and the run examined {two}"
      )
