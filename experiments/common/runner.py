"""What the experiments share: flags, one run, repeats, and errors."""

import dataclasses
import pathlib
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
from absl import app, flags, logging

from bdjax import compiler, data, metrics, models
from bdjax.data import Splits
from bdjax.errors import UserError
from experiments.common import figures, results, scores
from experiments.common.config import Config, fields_of, identity
from experiments.common.defaults import resolve
from experiments.common.program import Program, build, make_keys
from experiments.common.rundir import (
  disk_errors,
  open_run,
  read_json,
  write_json,
)
from experiments.common.train import Stopped, train

Report = Callable[[str], None]


def quiet(line: str) -> None:
  """Says nothing."""
  del line


def say(line: str) -> None:
  """One line of progress, on standard error."""
  print(line, file=sys.stderr, flush=True)


def main(experiment: str, summary: str) -> None:
  """The command line of an experiment.

  Args:
    experiment: its name, `Config.experiment`.
    summary: its module's docstring, shown by `--help`.
  """
  define = {
    bool: flags.DEFINE_bool,
    int: flags.DEFINE_integer,
    float: flags.DEFINE_float,
    str: flags.DEFINE_string,
  }
  for field in fields_of(experiment):
    kind = next(t for t in define if t.__name__ in str(field.type))
    if field.type is bool:
      kind = bool
    define[kind](
      field.name,
      field.default,
      field.metadata["help"],
      module_name=sys.argv[0],  # for --help to show it
    )
  sys.modules["__main__"].__doc__ = summary

  def start(argv):
    if len(argv) > 1:
      raise app.UsageError(f"unknown argument {argv[1]!r}")
    chosen = {f.name: flags.FLAGS[f.name].value for f in fields_of(experiment)}
    sys.exit(_guarded(Config(experiment=experiment, **chosen)))

  app.run(start)


def _guarded(config: Config) -> int:
  """Runs, and turns what can go wrong into one line and an exit status."""
  logging.set_verbosity(logging.ERROR)
  compiler.enable_cache()
  try:
    run(config, say, show=True)
  except UserError as error:
    say(f"error: {error}")
    return 2
  except Stopped as stop:
    say(f"{stop}; the same command goes on from there")
    return 128 + stop.signum
  except KeyboardInterrupt:
    say("stopped; the same command goes on from the last checkpoint")
    return 130
  return 0


def run(
  config: Config, report: Report = quiet, show: bool = False
) -> dict[str, Any] | None:
  """Runs an experiment, with all its seeds; importable.

  Args:
    config: need not be resolved.
    report: takes lines of progress.
    show: print tables.

  Returns:
    What stands in `results.json`; None for a dry run.

  Raises:
    UserError: something the user can put right.
    Stopped: after SIGTERM or Ctrl-C.
  """
  config = resolve(config)
  splits = _load(config, config.seed, report)
  program = build(config, splits)
  if config.dry_run:
    _print_plan(program, splits)
    return None
  if config.seeds == 1:
    with open_run(config) as directory:
      out = _member(program, splits, config, config, directory, report)
  else:
    out = _group(program, config, report)
  if show:
    results.print_table(out, config.directory)
  return out


def _load(config: Config, seed: int, report: Report) -> Splits:
  return data.load(
    config.dataset,
    source=config.data_source,
    data_dir=config.data_dir,
    defender_fraction=config.defender_fraction,
    seed=seed,
    report=report,
  )


def _group(program: Program, config: Config, report: Report) -> dict[str, Any]:
  """Repeats a run with consecutive seeds, each in `seed-N/`."""
  if _wants_benchmark(config):  # before the members, which then find theirs
    _benchmark(config, config, report)
  with open_run(config) as directory:
    members = []
    for seed in range(config.seed, config.seed + config.seeds):
      report(f"seed {seed}")
      one = dataclasses.replace(
        config,
        seed=seed,
        seeds=1,
        runs_dir=str(directory),
        run_name=f"seed-{seed}",
      )
      with open_run(one) as place:
        splits = _load(one, seed, report)
        members.append(_member(program, splits, one, config, place, report))
    out = members[0] | results.combine(members)
    out["config"] = identity(config)
    out["seeds"] = [m["seeds"][0] for m in members]
    for name in ("details", "checkpoint"):
      out.pop(name, None)
    out["members"] = [f"seed-{seed}" for seed in out["seeds"]]
    with disk_errors(directory):
      write_json(directory / "results.json", out)
  return out


def _member(
  program: Program,
  splits: Splits,
  config: Config,
  whole: Config,
  directory: pathlib.Path,
  report: Report,
) -> dict[str, Any]:
  """One run with one seed: train, evaluate, draw, write.

  `whole` is the configuration of the group, or of this run if it is alone:
  its `runs_dir` is where the benchmark lies.
  """
  finished = read_json(directory / "results.json")
  if finished is not None:
    report(f"{directory} is finished (--overwrite starts over)")
    return finished
  trained = train(program, splits, config.seed, directory, report)
  begin = time.perf_counter()
  keys = make_keys(config.seed)
  evaluation = scores.evaluate(program, trained.carry, splits, keys.evaluate)
  seconds = trained.seconds | {"evaluate": time.perf_counter() - begin}
  measured = dict(evaluation.measured)
  out = {"config": identity(config), "reported": results.reported(config)}
  if _wants_benchmark(config):
    benchmark = _benchmark(config, whole, report)
    measured["benchmark_accuracy"] = benchmark
    gap = metrics.difference(measured["clean_accuracy"], benchmark)
    out["difference"] = gap._asdict()
  out["measured"] = results.as_json(measured)
  out["details"] = evaluation.details
  out |= results.surroundings(splits.info)
  speed = program.total_steps * config.batch_size / seconds["train"]
  flops = results.flops_per_image(program.model, splits.test.images.shape[1:])
  out |= {
    "seeds": [config.seed],
    "steps": program.total_steps,
    "parameters": models.count_parameters(program.model),
    "seconds": seconds,
    "images_per_second": speed,
    "forward_flops_per_image": flops,
    "share_of_bfloat16_peak": results.share_of_peak(flops, speed),
    "peak_memory_bytes": results.peak_memory_bytes(),
  }
  with disk_errors(directory):
    figures.draw(program, trained, evaluation, splits, keys.figures, directory)
    write_json(directory / "results.json", out)
  return out


def _wants_benchmark(config: Config) -> bool:
  return config.experiment != "clean" and config.benchmark != "none"


def _benchmark(config: Config, whole: Config, report: Report) -> metrics.Score:
  """Clean accuracy of the same model, data and training without an attack.

  It is the result of a finished run of `experiments.clean`, alone or in a
  group, or of one that is made now.
  """
  names = {f.name for f in fields_of("clean")}
  names -= {"run_name", "overwrite", "dry_run"}
  clean = Config("clean", **{name: getattr(config, name) for name in names})
  clean = resolve(dataclasses.replace(clean, runs_dir=whole.runs_dir))
  runs, wanted = clean.directory.parent, identity(clean)
  for pattern in ("*/results.json", "*/*/results.json"):
    for path in sorted(runs.glob(pattern)):
      found = read_json(path)
      if found["config"] == wanted:
        report(f"benchmark accuracy from {path.parent}")
        return metrics.Score(**found["measured"]["clean_accuracy"])
  if config.benchmark == "reuse":
    raise UserError(
      f"no finished run of experiments.clean in {runs} has these flags: train "
      "it, or take --benchmark=auto or none"
    )
  clean = dataclasses.replace(clean, run_name=_free_name(runs, clean))
  report(f"training the clean benchmark, {clean.directory}")
  found = run(clean, report)
  return metrics.Score(**found["measured"]["clean_accuracy"])


def _free_name(runs: pathlib.Path, clean: Config) -> str:
  """The clean run's name: its own, numbered where another run has it."""
  name, number = clean.run_name, 2
  while True:
    there = read_json(runs / name / "config.json")
    if there in (None, identity(clean)):
      return name
    name, number = f"{clean.run_name}-{number}", number + 1


def _print_plan(program: Program, splits: Splits) -> None:
  config = program.config
  for name, value in identity(config).items():
    print(f"{name}: {value}")
  print(f"directory: {config.directory}")
  print(f"parameters: {models.count_parameters(program.model):,}")
  print(
    f"images: {len(splits.train.images):,} to train on, "
    f"{len(splits.defender.images):,} the defender's, "
    f"{len(splits.test.images):,} to test"
  )
  print(
    f"steps: {program.total_steps:,} ({program.steps} a call, "
    f"{program.calls} calls an epoch)"
  )
  print(
    f"estimated memory: {_estimated_bytes(program, splits) / 2**20:,.0f} MiB"
  )


def _estimated_bytes(program: Program, splits: Splits) -> int:
  """Device bytes of the compiled training call, as XLA plans them."""
  carry = jax.eval_shape(program.create, jax.random.key(0))
  n, *shape = splits.train.images.shape
  arrays = [
    jax.ShapeDtypeStruct((n, *shape), "uint8"),
    jax.ShapeDtypeStruct((n,), "int32"),
    jax.ShapeDtypeStruct((n,), "int32"),
  ]
  images, labels, order = arrays
  key = jax.eval_shape(lambda: jax.random.key(0))
  lowered = program.call.lower(carry, key, images, labels, order, 0)
  plan = lowered.compile().memory_analysis()
  return plan.argument_size_in_bytes + plan.temp_size_in_bytes
