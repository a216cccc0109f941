"""One run, a group of runs, and their benchmark."""

import contextlib
import dataclasses
import functools
import pathlib
from collections.abc import Iterator
from typing import Any

import jax

from bdjax import metrics
from bdjax.errors import UserError
from experiments.common import plan, population, profiling, results, sweep
from experiments.common.benchmark import clean_config, finished
from experiments.common.config import Config, identity
from experiments.common.member import Report, load, train_member
from experiments.common.program import Program, build_all, digest
from experiments.common.rundir import once, open_run, write_json


def quiet(line: str) -> None:
  """Says nothing."""
  del line


def run(
  config: Config,
  report: Report = quiet,
  *,
  show: bool = False,
  wait: bool = False,
) -> dict[str, Any] | None:
  """Runs an experiment, with all its settings and seeds; importable.

  Args:
    config: need not be resolved.
    report: takes lines of progress.
    show: prints a table.
    wait: waits for another process that is at work on this run, and does not
      call that an error.

  Returns:
    What stands in `results.json`; None for a dry run.

  Raises:
    UserError: something the user can put right.
    Stopped: after SIGTERM or Ctrl-C.
  """
  config, settings = sweep.expand(config)
  splits = load(config, report)
  if splits.info.source == "file":
    mark = {"data_sha256": digest(splits.info)}
    config = dataclasses.replace(config, **mark)
    settings = [dataclasses.replace(each, **mark) for each in settings]
  programs = build_all(settings, splits)
  width = population.at_once(config, programs[-1], splits)
  with _device_memory(programs[0]):
    if config.dry_run:
      print(plan.describe(config, programs, splits))
      return None
    profiling.check(config.profile)
    with open_run(
      config.directory,
      identity(config),
      overwrite=config.overwrite,
      wait=report if wait else None,
    ) as directory:
      if sweep.axes(config):
        out = _sweep(config, programs, width, report)
      elif config.seeds > 1:
        (out,) = _groups(config, programs, width, report)
      else:
        out = _alone(programs[0], splits, config, directory, report)
  if show:
    results.print_table(out, config.directory)
  return out


def _alone(program, splits, config, directory, report) -> dict[str, Any]:
  """A run, and after it the benchmark that it is compared with."""
  if config.benchmark == "reuse":  # said before the training, not after
    _benchmark(config, config.directory.parent, report)
  out = once(
    directory,
    report,
    lambda: train_member(program, splits, config, directory, report),
  )
  return _with_benchmark(out, config, config.directory.parent, report)


def _sweep(config, programs, width, report) -> dict[str, Any]:
  """All settings, each a run or a group of seeds, and what they say."""
  with contextlib.ExitStack() as stack:
    if config.seeds > 1:
      for setting in (program.config for program in programs):
        stack.enter_context(_open(setting))
    found = _groups(config, programs, width, report)
  settings = [program.config for program in programs]
  out = sweep.combine(config, settings, found)
  write_json(config.directory / "results.json", out)
  sweep.draw(out, config.directory)
  return out


def _groups(config, programs, width, report) -> list[dict[str, Any]]:
  """Trains all members, and puts those of a setting together.

  Args:
    config: of the whole.
    programs: one a setting, whose directory is held where it has seeds.
    width: how many members train at a time.
    report: takes one line.

  Returns:
    The results of each setting.
  """
  runs = config.directory.parent
  settings = [program.config for program in programs]
  groups = [plan.members(setting) for setting in settings]
  if config.benchmark == "auto" and config.seeds > 1:  # for members to find
    run(clean_config(config, runs), report, wait=True)
  elif config.benchmark in ("auto", "reuse"):
    for member in sum(groups, []):
      _benchmark(member, runs, report)
  members = [
    program._replace(config=member)
    for program, group in zip(programs, groups, strict=True)
    for member in group
  ]
  train = functools.partial(_one_of_many, runs, report)
  found = iter(population.train_all(members, train, width, config.vmap))
  out = []
  for setting, group in zip(settings, groups, strict=True):
    each = [next(found) for _ in group]
    if setting.seeds > 1:
      each = [results.combine(each)]
      each[0]["config"] = identity(setting)
      each[0]["members"] = [member.run_name for member in group]
      write_json(setting.directory / "results.json", each[0])
    out += each
  return out


def _one_of_many(runs, report, program, received) -> dict[str, Any]:
  """A member, in its own directory; `received` as in `train`."""
  config = program.config
  name = config.directory.relative_to(runs)

  def say(line):
    report(f"{name}: {line}")

  say("starts")
  with _open(config) as place:
    splits = load(config, say)
    make = functools.partial(
      train_member, program, splits, config, place, say, received
    )
    return _with_benchmark(once(place, say, make), config, runs, say)


def _open(config: Config):
  return open_run(
    config.directory, identity(config), overwrite=config.overwrite
  )


def _with_benchmark(out, config, runs, report) -> dict[str, Any]:
  """Adds the benchmark accuracy, if it is wanted and not yet there."""
  if config.experiment == "clean" or config.benchmark == "none":
    return out
  if "benchmark_accuracy" in out["measured"]:
    return out
  benchmark = _benchmark(config, runs, report)
  clean = metrics.Score(**out["measured"]["clean_accuracy"])
  out["measured"]["benchmark_accuracy"] = benchmark._asdict()
  out["difference"] = metrics.difference(clean, benchmark)._asdict()
  write_json(config.directory / "results.json", out)
  return out


def _benchmark(config, runs: pathlib.Path, report) -> metrics.Score:
  """Clean accuracy of the same model, data and training without an attack.

  It is the result of a finished run of `experiments.clean`, alone or in a
  group, or of one that is made now.
  """
  clean = clean_config(config, runs)
  found = finished(clean, runs)
  if found is None and config.benchmark == "reuse":
    raise UserError(
      f"no finished run of experiments.clean in {runs} has these flags: train "
      "it, or take --benchmark=auto or none"
    )
  if found is None:
    report(f"training the clean benchmark, {clean.directory}")
    found = run(clean, report, wait=True)
  return metrics.Score(**found["measured"]["clean_accuracy"])


@contextlib.contextmanager
def _device_memory(program: Program) -> Iterator[None]:
  """Turns the device's lack of memory into a line with a smaller batch."""
  try:
    yield
  except jax.errors.JaxRuntimeError as error:
    if "RESOURCE_EXHAUSTED" not in str(error):
      raise
    size, devices = program.config.batch_size, program.mesh.size
    smaller = max(size // 2 // devices, 1) * devices
    raise UserError(
      f"the device has no memory left at --batch_size={size}: try "
      f"--batch_size={smaller}"
    ) from error
