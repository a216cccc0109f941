"""One run, a group of runs that differ in their seed, and their benchmark."""

import contextlib
import dataclasses
import functools
import pathlib
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax

from bdjax import data, metrics, models
from bdjax.data import Splits
from bdjax.errors import UserError
from experiments.common import figures, plan, profiling, results, scores
from experiments.common.config import (
  Config,
  differences,
  fields_of,
  identity,
)
from experiments.common.defaults import resolve
from experiments.common.program import Program, build, digest, make_keys
from experiments.common.rundir import once, open_run, read_json, write_json
from experiments.common.train import train

Report = Callable[[str], None]


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
  """Runs an experiment, with all its seeds; importable.

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
  config = resolve(config)
  splits = _load(config, report)
  if splits.info.source == "file":
    config = dataclasses.replace(config, data_sha256=digest(splits.info))
  program = build(config, splits)
  with _device_memory(program):
    if config.dry_run:
      print(plan.describe(program, splits))
      return None
    profiling.check(config.profile)
    with open_run(
      config.directory,
      identity(config),
      overwrite=config.overwrite,
      wait=report if wait else None,
    ) as directory:
      if config.seeds == 1:
        out = _alone(program, splits, config, directory, report)
      else:
        out = _group(program, config, directory, report)
  if show:
    results.print_table(out, config.directory)
  return out


def _load(config: Config, report: Report) -> Splits:
  return data.load(
    config.dataset,
    source=config.data_source,
    data_dir=config.data_dir,
    defender_fraction=config.defender_fraction,
    seed=config.seed,
    report=report,
  )


def _alone(program, splits, config, directory, report) -> dict[str, Any]:
  """A run, and after it the benchmark that it is compared with."""
  if config.benchmark == "reuse":  # said before the training, not after
    _benchmark(config, config.directory.parent, report)
  out = once(
    directory,
    report,
    lambda: _member(program, splits, config, directory, report),
  )
  return _with_benchmark(out, config, config.directory.parent, report)


def _group(program, config, directory, report) -> dict[str, Any]:
  """Repeats a run with consecutive seeds, each in `seed-N/`."""
  runs = config.directory.parent
  members = [
    dataclasses.replace(
      config,
      seed=seed,
      seeds=1,
      runs_dir=str(directory),
      run_name=f"seed-{seed}",
    )
    for seed in range(config.seed, config.seed + config.seeds)
  ]
  if config.benchmark == "auto":  # the whole group's, for members to find
    run(_clean(config, runs), report, wait=True)
  elif config.benchmark == "reuse":
    for member in members:
      _benchmark(member, runs, report)
  found = []
  for member in members:
    report(f"seed {member.seed}")
    with open_run(
      member.directory, identity(member), overwrite=member.overwrite
    ) as place:
      splits = _load(member, report)
      make = functools.partial(_member, program, splits, member, place, report)
      out = once(place, report, make)
      found.append(_with_benchmark(out, member, runs, report))
  out = results.combine(found)
  out["config"] = identity(config)
  out["members"] = [member.run_name for member in members]
  write_json(directory / "results.json", out)
  return out


def _member(
  program: Program,
  splits: Splits,
  config: Config,
  directory: pathlib.Path,
  report: Report,
) -> dict[str, Any]:
  """One run with one seed: train, evaluate, draw."""
  commit = results.git_commit()  # now: a checkout may change while it trains
  trained = train(program, splits, config.seed, directory, commit, report)
  begin = time.perf_counter()
  keys = make_keys(config.seed)
  found = scores.evaluate(program, trained.carry, splits, keys.evaluate)
  seconds = trained.seconds | {"evaluate": time.perf_counter() - begin}
  speed = program.total_steps * config.batch_size / seconds["train"]
  flops = results.flops_per_image(program.model, splits.test.images.shape[1:])
  out = {
    "config": identity(config),
    "measured": results.as_json(found.measured),
    "reported": results.reported(config),
    "details": found.details,
    **results.surroundings(splits.info),
    "git_commit": {"training": trained.commits, "evaluation": commit},
    "seeds": [config.seed],
    "steps": program.total_steps,
    "parameters": models.count_parameters(program.model),
    "seconds": seconds,
    "images_per_second": speed,
    "forward_flops_per_image": flops,
    "share_of_bfloat16_peak": results.share_of_peak(flops, speed),
    "peak_memory_bytes": results.peak_memory_bytes(),
  }
  figures.draw(program, trained, found, splits, keys.figures, directory)
  return out


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
  clean = _clean(config, runs)
  found = _finished(clean, runs)
  if found is None and config.benchmark == "reuse":
    raise UserError(
      f"no finished run of experiments.clean in {runs} has these flags: train "
      "it, or take --benchmark=auto or none"
    )
  if found is None:
    report(f"training the clean benchmark, {clean.directory}")
    found = run(clean, report, wait=True)
  return metrics.Score(**found["measured"]["clean_accuracy"])


def _clean(config: Config, runs: pathlib.Path) -> Config:
  """The benchmark's configuration, under a name that is its own or free."""
  names = {f.name for f in fields_of("clean")}
  names -= {"run_name", "overwrite", "profile", "dry_run"}
  kept = {name: getattr(config, name) for name in names}
  clean = Config("clean", config.data_sha256, **kept)
  clean = resolve(dataclasses.replace(clean, runs_dir=str(runs)))
  name, number = clean.run_name, 2
  while not _free_for(clean, _stored(runs / name / "config.json")):
    name, number = f"{clean.run_name}-{number}", number + 1
  return dataclasses.replace(clean, run_name=name)


def _free_for(clean: Config, stored: Any) -> bool:
  if stored is None:
    return True
  return isinstance(stored, dict) and not differences(stored, identity(clean))


def _finished(clean: Config, runs: pathlib.Path) -> dict[str, Any] | None:
  for pattern in ("*/results.json", "*/*/results.json"):
    for path in sorted(runs.glob(pattern)):
      found = _stored(path)
      config = found.get("config") if isinstance(found, dict) else None
      if isinstance(config, dict):
        if not differences(config, identity(clean)):
          return found
  return None


def _stored(path: pathlib.Path) -> Any | None:
  """JSON that may be anybody's: None where it cannot be read."""
  try:
    return read_json(path)
  except (UserError, OSError):
    return {} if path.name == "config.json" else None


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
