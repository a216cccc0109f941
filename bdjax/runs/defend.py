"""Runs a defence against a run, or against every run of a group."""

import dataclasses
import logging
import pathlib
import time
from typing import Any

import numpy as np

from bdjax import files, metrics, provenance
from bdjax import settings as settings_lib
from bdjax.checkpoints import Checkpoints
from bdjax.defenses import DEFENSES, DefenseMethod
from bdjax.defenses.base import (
  Repair,
  RepairPath,
  Results,
  TrainedNetwork,
  Verdict,
)
from bdjax.errors import UserError
from bdjax.evaluation import ScoredResults, score_results
from bdjax.runs import directory as layout
from bdjax.runs import figures, profiling
from bdjax.runs.combine import combine_defenses
from bdjax.runs.config import RunConfig
from bdjax.runs.defense_config import ELSEWHERE, DefenseConfig, check
from bdjax.runs.load import (
  TrainedRun,
  defense_keys,
  find_runs,
  load_checkpoint,
  load_run,
)
from bdjax.runs.null_runs import add_p_value
from bdjax.training import TrainState

logger = logging.getLogger(__name__)


def defend(
  method: DefenseMethod | str, settings: Any, config: DefenseConfig
) -> dict[str, Any]:
  """Run a defence, on all runs of a group.

  Args:
    method: the defence, or its name in `DEFENSES`.
    settings: of the method.
    config: of the run.

  Returns:
    What `results.json` says.

  Raises:
    UserError: something the user can put right.
  """
  method = DEFENSES[method] if isinstance(method, str) else method
  check(config)
  settings_lib.check(settings)
  if config.null_runs and not method.gives_verdict:
    raise UserError(
      f"null_runs must be left out: {method.name} gives no verdict"
    )
  profiling.check(config.profile)
  root = pathlib.Path(config.run or config.checkpoint).expanduser()
  if config.checkpoint:
    given = {n: getattr(config, n) for n in ELSEWHERE}
    known = {k: v for k, v in given.items() if v is not None}
    run_config = RunConfig(
      dataset=config.dataset,
      data_source=config.data_source,
      data_dir=config.data_dir,
      **{"model": "resnet18"} | known,
    )
    run = load_checkpoint(root, run_config, config.seed)
    # Orbax owns the directory itself.
    beside = root.with_name(f"{root.name}-defended")
    return defend_run(method, settings, config, run, beside)
  runs = find_runs(root)
  results = []
  for path in runs:
    logger.info("%s: %s", method.name, path)
    results.append(_defend_path(method, settings, config, path, runs == [root]))
  if runs == [root]:
    return results[0]
  combined = combine_defenses(results) | {"runs": [path.name for path in runs]}
  combined["run"] = {**combined["run"], "name": root.name}
  output = output_directory(method, settings, config, root)
  with files.disk_errors(output, "another output"):
    output.mkdir(parents=True, exist_ok=True)
    layout.write_results(output, combined)
  return combined


def _defend_path(method, settings, config, path, alone) -> dict[str, Any]:
  run = load_run(
    path,
    dataset=config.dataset,
    data_source=config.data_source,
    data_dir=config.data_dir,
    seed=config.seed,
  )
  if not alone and config.output:
    output = pathlib.Path(config.output).expanduser() / path.name
    config = dataclasses.replace(config, output=str(output))
  return defend_run(method, settings, config, run, path)


def output_directory(
  method: DefenseMethod, settings: Any, config: DefenseConfig, root
) -> pathlib.Path:
  """Return where the results of a defence of a run go."""
  if config.output:
    return pathlib.Path(config.output).expanduser()
  name = f"{method.name}{method.variant(settings)}"
  return root / layout.DEFENSES / name


def defend_run(
  method: DefenseMethod,
  settings: Any,
  config: DefenseConfig,
  run: TrainedRun,
  root: pathlib.Path,
) -> dict[str, Any]:
  """Run a defence on a network that is loaded, or return existing results.

  Args:
    method: the defence.
    settings: of the method.
    config: of the run; `run` and `checkpoint` are not looked at.
    run: the network.
    root: the results go to `defenses/NAME` in it, unless `config.output` says.

  Returns:
    What `results.json` says.

  Raises:
    UserError: something the user can put right.
  """
  identity = (
    settings_lib.identity(config)
    | settings_lib.identity(settings)
    | run.identity()
    | {"defense": method.name, "format": 2}
  )
  output = output_directory(method, settings, config, root)
  with layout.open_directory(
    output, identity, overwrite=config.overwrite, hint="output"
  ):
    results = layout.load_or_compute(
      output,
      lambda: _defend(method, settings, config, run, output, identity),
    )
    if config.null_runs:
      results = add_p_value(
        results, method, config, run, lambda c: defend(method, settings, c)
      )
      layout.write_results(output, results)
    return results


def _defend(method, settings, config, run, output, identity):
  """Defend, score and draw; return what goes into `results.json`."""
  defense_key, evaluation_key = defense_keys(config.seed, run.config.seed)
  run = run.with_key(defense_key)
  defender = run.defender
  if method.needs_training_set:
    defender = run.training_defender()
  with profiling.traced(config.profile):
    begin = time.perf_counter()
    results = method.defend(defender, settings, output)
    middle = time.perf_counter()
    limit = config.eval_images or method.eval_images
    evaluator = run.evaluator(evaluation_key, limit)
    scored = score_results(results, evaluator, run.original)
    end = time.perf_counter()
  save_results(results, output)
  sample = np.asarray(run.defender.images[0])
  figures.draw_defense(scored, run.defender.class_names, sample, output)
  single = len(evaluator.targets) == 1
  reported = {}
  if single and method.standard(settings):
    cell = run.config.experiment, run.splits.info.name
    reported = method.reported.get(cell, {})
  return {
    "defense": method.name,
    "config": identity,
    "run": {
      "name": run.name,
      "attack": run.config.attack,
      "has_attack": evaluator.has_attack,
      "seed": run.config.seed,
      "step": run.step,
    },
    "measured": as_json(scored),
    "reported": reported,
    "details": scored.details,
    **provenance.environment(run.splits.info),
    "git_commit": provenance.git_commit(),
    "seeds": [run.config.seed],
    "seconds": {"defend": middle - begin, "evaluate": end - middle},
    "peak_memory_bytes": provenance.peak_memory_bytes(),
  }


def as_json(scored: ScoredResults) -> dict[str, Any]:
  """Return what was measured, ready for JSON."""
  return {
    name: value._asdict() if isinstance(value, metrics.Score) else value
    for name, value in scored.measured.items()
  }


def save_results(results: Results, directory: pathlib.Path) -> None:
  """Keep repaired networks, `checkpoints/NAME`, and reversed triggers."""
  networks = []
  for result in results:
    if isinstance(result, TrainedNetwork):
      networks.append(result)
    elif isinstance(result, Repair) and result.saved:
      networks.append(result)
    elif isinstance(result, RepairPath):
      networks.extend(result.repairs)
    elif isinstance(result, Verdict) and result.triggers is not None:
      files.write_npz(
        directory / layout.TRIGGERS,
        masks=np.asarray(result.triggers.mask),
        patterns=np.asarray(result.triggers.pattern),
        flagged=np.array(result.suspects, np.int32),
      )
  for network in networks:
    state = TrainState(np.int32(0), *network.weights, None)
    path = directory / layout.CHECKPOINTS / network.name
    with Checkpoints(path) as checkpoints:
      if checkpoints.latest_step() is None:
        checkpoints.save(0, state, {}, {}, 0.0)
