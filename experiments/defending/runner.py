"""Runs a defence against a run, or against every member of a group."""

import dataclasses
import pathlib
import time
from typing import Any

import jax
import numpy as np

from bdjax import metrics
from bdjax.errors import UserError
from bdjax.models import Weights
from experiments.common import profiling, results
from experiments.common.cli import say, serve
from experiments.common.rundir import (
  disk_errors,
  once,
  open_run,
  write_json,
)
from experiments.common.runner import Report, quiet
from experiments.defending.config import Config, check, identity
from experiments.defending.defense import Defense, Space
from experiments.defending.exam import Exam
from experiments.defending.subject import Subject, load, members
from experiments.defending.table import print_table


def main(defense: Defense) -> None:
  """Runs a defence from the command line; to be called by its script."""

  def start(**chosen):
    run(defense, defense.config(**chosen), say, show=True)

  serve(dataclasses.fields(defense.config), start)


def run(
  defense: Defense,
  config: Config,
  report: Report = quiet,
  *,
  show: bool = False,
) -> dict[str, Any]:
  """Runs a defence, on all members of a group; importable.

  Args:
    defense: the defence.
    config: of its class.
    report: takes lines of progress.
    show: prints a table.

  Returns:
    What stands in `results.json`.

  Raises:
    UserError: something the user can put right.
  """
  check(config)
  profiling.check(config.profile)
  places = members(config)
  root = pathlib.Path(config.run or config.checkpoint).expanduser()
  if places == [root]:
    out = _alone(defense, config, root, report)
  else:
    out = _group(defense, config, root, places, report)
  if show:
    print_table(out, _output(defense, config, root))
  return out


def _output(defense, config, directory) -> pathlib.Path:
  if config.output:
    return pathlib.Path(config.output).expanduser()
  beside = directory
  if config.checkpoint:  # orbax owns the directory itself
    beside = directory.with_name(f"{directory.name}-defended")
  return beside / "defenses" / f"{defense.name}{defense.variant(config)}"


def _group(defense, config, root, places, report) -> dict[str, Any]:
  found = []
  for place in places:
    report(place.name)
    output = config.output and str(pathlib.Path(config.output) / place.name)
    member = dataclasses.replace(config, run=str(place), output=output)
    found.append(_alone(defense, member, place, report))
  out = combine(found) | {"members": [place.name for place in places]}
  out["run"] = {**out["run"], "name": root.name}
  directory = _output(defense, config, root)
  with disk_errors(directory, "--output"):
    directory.mkdir(parents=True, exist_ok=True)
    write_json(directory / "results.json", out)
  return out


def _alone(defense, config, root, report) -> dict[str, Any]:
  subject = load(config, root, report)
  place = _output(defense, config, root)
  return run_on(defense, config, subject, place, report)


def run_on(
  defense: Defense,
  config: Config,
  subject: Subject,
  place: pathlib.Path,
  report: Report,
) -> dict[str, Any]:
  """Runs a defence on one network that is loaded; what is there, is taken.

  Args:
    defense: the defence.
    config: of its class.
    subject: the network.
    place: the directory of the results.
    report: takes lines of progress.

  Returns:
    What stands in `results.json`.

  Raises:
    UserError: something the user can put right.
  """
  with open_run(
    place,
    identity(config) | subject.identity(),
    overwrite=config.overwrite,
    elsewhere="--output",
  ) as directory:
    finished = once(
      directory,
      report,
      lambda: _defend(defense, config, subject, directory, report),
    )
    out = defense.amend(finished, subject, config, report)
    if out != finished:
      write_json(directory / "results.json", out)
    return out


def _defend(defense, config, subject: Subject, directory, report):
  defense_key, exam_key = jax.random.split(
    root_key(config.seed, subject.config.seed)
  )
  space = Space(directory, report, defense_key)
  with profiling.traced(config.profile):
    begin = time.perf_counter()
    found = defense.defend(subject.defender, config, space)
    middle = time.perf_counter()
    exam = Exam(subject, exam_key, config.eval_images or defense.eval_images)
    findings = defense.examine(found, subject.defender, exam, config, space)
    end = time.perf_counter()
  return {
    "defense": defense.name,
    "config": identity(config) | subject.identity(),
    "run": {
      "name": _name(subject.directory),
      "experiment": subject.config.experiment,
      "attack": bool(subject.attack or subject.given),
      "seed": subject.config.seed,
      "step": subject.step,
    },
    "measured": {
      name: value._asdict() if isinstance(value, metrics.Score) else value
      for name, value in findings.measured.items()
    },
    "reported": findings.reported,
    "details": findings.details,
    **results.surroundings(subject.splits.info),
    "git_commit": results.git_commit(),
    "seeds": [subject.config.seed],
    "seconds": {"defend": middle - begin, "examine": end - middle},
    "peak_memory_bytes": results.peak_memory_bytes(),
  }


def check_finite(weights: Weights, flag: str) -> None:
  """Checks that tuning has not diverged.

  Raises:
    UserError: a weight is not finite.
  """
  for leaf in jax.tree.leaves(jax.device_get(weights)):
    if not np.isfinite(leaf).all():
      raise UserError(f"tuning diverged: take a smaller {flag}")


def root_key(seed: int, run_seed: int) -> jax.Array:
  """The root of a defence's randomness, apart from its run's own streams.

  A run splits the key of its seed; the number folded in here is none of that
  split's. Members of a group draw each for themselves.
  """
  key = jax.random.fold_in(jax.random.key(seed), 1 << 30)
  return jax.random.fold_in(key, run_seed)


def _name(directory: pathlib.Path) -> str:
  """A run's name, with its group's."""
  parent = directory.parent.name
  if directory.name.startswith("seed-"):
    return f"{parent}/{directory.name}"
  return directory.name


def combine(members: list[dict[str, Any]]) -> dict[str, Any]:
  """The results of a defence on runs that differ in their seed.

  Shares of test images and numbers become means with intervals over seeds,
  shares of labels are pooled; what is a list by class stays as a list of
  lists, and with one member all stays as it is.
  """
  names = set.intersection(*(set(m["measured"]) for m in members))
  measured = {
    name: _over_seeds([m["measured"][name] for m in members])
    for name in members[0]["measured"]
    if name in names
  }
  out = members[0] | {"measured": measured}
  del out["details"]
  out["seeds"] = [seed for m in members for seed in m["seeds"]]
  out["seconds"] = {
    key: sum(m["seconds"][key] for m in members) for key in out["seconds"]
  }
  return out


def _over_seeds(values: list[Any]) -> Any:
  if len(values) == 1:
    return values[0]
  if all(isinstance(v, dict) for v in values):
    if values[0]["over"] == "labels":
      total = sum(v["n"] for v in values)
      mean = sum(v["mean"] * v["n"] for v in values) / total
      return metrics.proportion(mean, total)._replace(over="labels")._asdict()
    return metrics.over_seeds([v["mean"] for v in values])._asdict()
  if all(isinstance(v, int | float) for v in values):
    return metrics.mean_over_seeds(list(map(float, values)))._asdict()
  return values
