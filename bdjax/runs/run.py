"""Runs a plan: one run, the seeds of a group, the settings of a sweep."""

import contextlib
import dataclasses
import functools
import logging
import pathlib
import time
from collections.abc import Iterator
from typing import Any

import jax

from bdjax import data, metrics, models, provenance
from bdjax.data import Splits
from bdjax.errors import UserError
from bdjax.evaluation import attack_scores
from bdjax.runs import clean, figures, profiling
from bdjax.runs.combine import combine_seeds
from bdjax.runs.config import RunConfig, identity
from bdjax.runs.directory import (
  load_or_compute,
  open_directory,
  write_results,
)
from bdjax.runs.setup import Setup, build_all, digest, make_keys
from bdjax.runs.sweep import (
  Plan,
  combine_settings,
  draw_sweep,
  expand,
  seed_runs,
)
from bdjax.runs.train import train

logger = logging.getLogger(__name__)


def load_data(config: RunConfig) -> Splits:
  """Load the data of a run; its seed says which are the defender's images."""
  return data.load(
    config.dataset,
    source=config.data_source,
    data_dir=config.data_dir,
    defender_fraction=config.defender_fraction,
    seed=config.seed,
  )


def run(config: RunConfig) -> dict[str, Any]:
  """Train, score and draw all runs of a configuration.

  What is finished is kept, what was stopped is resumed.

  Args:
    config: need not be resolved.

  Returns:
    What `results.json` says of the whole.

  Raises:
    UserError: something the user can put right.
    Stopped: after SIGTERM or Ctrl-C.
  """
  plan, splits, setups = prepare(config)
  config = plan.config
  profiling.check(config.profile)
  with (
    _device_memory(setups[0]),
    open_directory(
      config.directory, identity(config), overwrite=config.overwrite
    ),
  ):
    if not plan.is_sweep and config.seeds == 1:
      return _train_one(setups[0], splits, config.directory.parent)
    results = [
      _train_group(setup, splits, config.directory.parent, plan)
      for setup in setups
    ]
    if not plan.is_sweep:
      return results[0]
    combined = combine_settings(plan, results)
    write_results(config.directory, combined)
    draw_sweep(combined, config.directory)
    return combined


def prepare(config: RunConfig) -> tuple[Plan, Splits, list[Setup]]:
  """Expand a configuration, load its data and put its programs together.

  Raises:
    UserError: the configuration does not fit the data or the devices.
  """
  plan = expand(config)
  splits = load_data(plan.config)
  if splits.info.source == "file":
    known = {"data_sha256": digest(splits.info)}
    plan = Plan(
      dataclasses.replace(plan.config, **known),
      [dataclasses.replace(each, **known) for each in plan.settings],
    )
  return plan, splits, build_all(plan.settings, splits)


def _train_group(setup, splits, runs, plan) -> dict[str, Any]:
  """Train the seeds of a setting, one after the other, with one program."""
  setting = setup.config
  with contextlib.ExitStack() as stack:
    if plan.is_sweep and setting.seeds > 1:
      stack.enter_context(_open(setting))
    results = []
    for config in seed_runs(setting):
      logger.info("%s", config.directory)
      own = setup._replace(config=config)
      with _open(config):
        seed_splits = splits
        if config.seed != plan.config.seed:
          seed_splits = load_data(config)
        results.append(_train_one(own, seed_splits, runs))
    if setting.seeds == 1:
      return results[0]
    combined = combine_seeds(results)
    combined["config"] = identity(setting)
    combined["runs"] = [config.run_name for config in seed_runs(setting)]
    write_results(setting.directory, combined)
    return combined


def _open(config: RunConfig):
  return open_directory(
    config.directory, identity(config), overwrite=config.overwrite
  )


def _train_one(setup: Setup, splits: Splits, runs) -> dict[str, Any]:
  """Train one run in its directory, and compare it with a clean one."""
  config = setup.config
  results = load_or_compute(
    config.directory,
    functools.partial(train_and_score, setup, splits, config.directory, runs),
  )
  return _with_benchmark(results, config, runs)


def train_and_score(
  setup: Setup, splits: Splits, directory: pathlib.Path, runs: pathlib.Path
) -> dict[str, Any]:
  """Train, evaluate and draw one run of one seed.

  Args:
    setup: of the run.
    splits: its data.
    directory: held by `open_directory`.
    runs: where a clean run is looked for, if the attack needs one.

  Returns:
    What goes into `results.json`.
  """
  config = setup.config
  commit = provenance.git_commit()  # now: a checkout may change meanwhile
  trained = train(
    setup,
    splits,
    config.seed,
    directory,
    commit,
    clean=_clean_network(config, runs),
  )
  keys = make_keys(config.seed)
  begin = time.perf_counter()
  scores = attack_scores(
    keys.evaluate,
    setup.model,
    trained.carry.classifier.weights,
    splits.test,
    splits.info.num_classes,
    setup.attack,
    trained.carry.generator.variables,
    draws=config.settings.eval_draws if setup.attack else 1,
    predictors=setup.predictors,
    mesh=setup.mesh,
  )
  seconds = trained.seconds | {"evaluate": time.perf_counter() - begin}
  figures.draw_run(setup, trained, scores, splits, keys.figures, directory)
  images_per_second = (
    setup.total_steps * config.batch_size / max(seconds["train"], 1e-9)
  )
  flops = provenance.flops_per_image(setup.model, splits.test.images.shape[1:])
  details = scores.details
  if setup.attack:
    details |= {"poisoned_share": trained.poisoned_share}
  reported = {}
  if setup.attack and not config.settings.has_several_targets:
    reported = config.method.reported.get(config.dataset, {})
  return {
    "config": identity(config),
    "measured": {k: v._asdict() for k, v in scores.measured.items()},
    "reported": reported,
    "details": details,
    **provenance.environment(splits.info),
    "git_commit": {"training": trained.commits, "evaluation": commit},
    "seeds": [config.seed],
    "steps": setup.total_steps,
    "parameters": models.count_parameters(setup.model),
    "seconds": seconds,
    "images_per_second": images_per_second,
    "forward_flops_per_image": flops,
    "share_of_bfloat16_peak": provenance.share_of_peak(
      flops, images_per_second
    ),
    "peak_memory_bytes": provenance.peak_memory_bytes(),
  }


def _clean_network(config, runs):
  """Return model and weights of the clean run that an attack is made from."""
  if config.attack is None or not config.method.needs_clean_network:
    return None
  from bdjax.runs.load import load_run  # which loads runs of every attack

  directory = clean.find_clean_run(config, runs)
  if directory is None:
    command = clean.command(config, runs)
    raise UserError(
      f"clean_run must be given for {config.attack}: `{command}` trains one"
    )
  defender = load_run(directory).defender
  return defender.model, defender.weights


def _with_benchmark(results, config, runs) -> dict[str, Any]:
  """Add the benchmark accuracy, where a clean run has it."""
  if config.attack is None or "benchmark_accuracy" in results["measured"]:
    return results
  benchmark = clean.benchmark(config, runs)
  if benchmark is None:
    return results
  accuracy = metrics.Score(**results["measured"]["clean_accuracy"])
  results["measured"]["benchmark_accuracy"] = benchmark._asdict()
  difference = metrics.difference(accuracy, benchmark)
  results["difference"] = difference._asdict()
  write_results(config.directory, results)
  return results


@contextlib.contextmanager
def _device_memory(setup: Setup) -> Iterator[None]:
  """Turn the device's lack of memory into a line with a smaller batch."""
  try:
    yield
  except jax.errors.JaxRuntimeError as error:
    if "RESOURCE_EXHAUSTED" not in str(error):
      raise
    size, devices = setup.config.batch_size, setup.mesh.size
    smaller = max(size // 2 // devices, 1) * devices
    raise UserError(
      f"batch_size must be smaller (got {size}): the device has no memory "
      f"left; try {smaller}"
    ) from error
