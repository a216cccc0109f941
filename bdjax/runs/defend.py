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
from bdjax.defenses.neural_cleanse.anomaly import p_value
from bdjax.errors import UserError
from bdjax.evaluation import ScoredResults, score_results
from bdjax.models import MODELS
from bdjax.runs import directory as layout
from bdjax.runs import figures, profiling
from bdjax.runs.config import RunConfig
from bdjax.runs.load import (
  TrainedRun,
  defense_keys,
  find_runs,
  load_checkpoint,
  load_run,
  stored_config,
)
from bdjax.settings import setting
from bdjax.training import TrainState

logger = logging.getLogger(__name__)

# What a clean run must share with a run whose scores it is compared with.
_ALIKE = ("dataset", "model", "width", "stem", "epochs", "augment")
_ELSEWHERE = ("model", "width", "stem", "defender_fraction")


@dataclasses.dataclass(frozen=True)
class DefenseConfig:
  """A defence's run: every setting but those of the method."""

  run: str | None = setting(
    None,
    "Run to defend, runs/NAME; of a group (runs/NAME-seeds), all its runs.",
    free=True,
    group="network",
  )
  checkpoint: str | None = setting(
    None,
    "Directory of checkpoints made elsewhere, in place of run, with dataset, "
    "model, width and stem. There is no attack to score.",
    free=True,
    group="network",
  )
  dataset: str | None = setting(
    None,
    "Data set, with checkpoint; with run, where its .npz file is now.",
    free=True,
    group="network",
  )
  data_source: str = setting(
    "auto", "Source of the bytes, as in training.", free=True, group="network"
  )
  data_dir: str | None = setting(
    None, "Directory of data, as in training.", free=True, group="network"
  )
  defender_fraction: float | None = setting(
    None,
    "Share of the training set that is used, with checkpoint (default: 0.05).",
    above=0,
    below=1,
    group="network",
  )
  model: str | None = setting(
    None,
    "Network, with checkpoint (default: resnet18).",
    choices=tuple(MODELS),
    group="network",
  )
  width: int | None = setting(
    None,
    "Filters of the first stage, with checkpoint (default: 64).",
    low=1,
    group="network",
  )
  stem: str | None = setting(
    None,
    "Stem of the ResNets, with checkpoint (default: cifar).",
    choices=("cifar", "imagenet"),
    group="network",
  )
  seed: int = setting(
    0,
    "Random seed of what the defence draws; the run's own is folded into it.",
    low=0,
    high=2**31 - 1,
    group="run",
  )
  eval_images: int | None = setting(
    None,
    "Test images to score on (default: all; where STRIP takes part, 2000).",
    low=2,
    group="run",
  )
  null_runs: str | None = setting(
    None,
    "Clean runs or groups of them, with commas: defended alike, they give the "
    "p-value of a verdict.",
    free=True,
    group="run",
  )
  output: str | None = setting(
    None,
    "Directory of the results (default: defenses/NAME in the run, or beside "
    "the checkpoints).",
    free=True,
    group="run",
  )
  overwrite: bool = setting(
    False, "Start over where there are results.", free=True, group="run"
  )
  profile: str | None = setting(
    None,
    "Directory for a trace of all of it, for Perfetto or xprof.",
    free=True,
    group="run",
  )


def check(config: DefenseConfig) -> None:
  """Check the settings.

  Raises:
    UserError: one is missing, contradicts another or is out of range.
  """
  if (config.run is None) == (config.checkpoint is None):
    raise UserError(
      "run must be given, as runs/NAME, or checkpoint with dataset: one of them"
    )
  if config.checkpoint is not None and config.dataset is None:
    raise UserError("dataset must be given with checkpoint: its training data")
  if config.run is not None:
    for name in _ELSEWHERE:
      if getattr(config, name) is not None:
        raise UserError(f"{name} must be left out with run, which has its own")
    if config.dataset and not config.dataset.endswith(".npz"):
      raise UserError(
        "dataset must be left out with run, unless it says where the run's "
        ".npz file is now"
      )
  settings_lib.check(config)


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
  profiling.check(config.profile)
  root = pathlib.Path(config.run or config.checkpoint).expanduser()
  if config.checkpoint:
    given = {n: getattr(config, n) for n in _ELSEWHERE}
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
  combined = combine(results) | {"runs": [path.name for path in runs]}
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
      results = _with_null(results, method, settings, config, run)
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


def _with_null(results, method, settings, config, run) -> dict[str, Any]:
  """Add the p-value of a verdict, by the same defence on clean runs."""
  if "largest_index" not in results["measured"]:
    raise UserError(
      f"null_runs must be left out: {method.name} gives no verdict"
    )
  null = []
  for text in config.null_runs.split(","):
    for path in find_runs(pathlib.Path(text.strip()).expanduser()):
      if path.resolve() == run.directory.resolve():
        continue
      _check_null(path, run)
      clean = dataclasses.replace(
        config,
        run=str(path),
        checkpoint=None,
        output=None,
        overwrite=False,
        null_runs=None,
        **dict.fromkeys(_ELSEWHERE),
      )
      other = defend(method, settings, clean)
      null.append(other["measured"]["largest_index"])
  if not null:
    raise UserError("null_runs must name another run than the one examined")
  value = p_value(results["measured"]["largest_index"], null)
  # A list, which the seeds of a group are not averaged over.
  measured = results["measured"] | {"p_value": [value]}
  details = results["details"] | {"null_largest_indices": null}
  return results | {"measured": measured, "details": details}


def _check_null(path: pathlib.Path, run: TrainedRun) -> None:
  null = stored_config(path)
  if null.attack is not None:
    raise UserError(f"null_runs must be clean runs (got {path})")
  for name in _ALIKE:
    own, other = getattr(run.config, name), getattr(null, name)
    if own != other and own is not None:
      raise UserError(
        f"null_runs must have the same {name} ({path} has {other}, the run "
        f"examined {own})"
      )


def combine(runs: list[dict[str, Any]]) -> dict[str, Any]:
  """Combine the results of a defence on runs that differ in their seed.

  Shares of test images and numbers become means with intervals over seeds,
  shares of labels are pooled; what is a list by class stays as a list of lists.

  Args:
    runs: their `results.json`.
  """
  names = set.intersection(*(set(run["measured"]) for run in runs))
  measured = {
    name: _over_seeds([run["measured"][name] for run in runs])
    for name in runs[0]["measured"]
    if name in names
  }
  out = runs[0] | {"measured": measured}
  del out["details"]
  out["seeds"] = [seed for run in runs for seed in run["seeds"]]
  out["seconds"] = {
    key: sum(run["seconds"][key] for run in runs) for key in out["seconds"]
  }
  return out


def _over_seeds(values: list[Any]) -> Any:
  if len(values) == 1:
    return values[0]
  if all(isinstance(v, dict) for v in values):
    if values[0]["over"] == "labels":
      total = sum(v["n"] for v in values)
      mean = sum(v["mean"] * v["n"] for v in values) / total
      return metrics.proportion(mean, total, "labels")._asdict()
    means = [v["mean"] for v in values]
    return metrics.over_seeds(means, values[0]["unit"])._asdict()
  if all(isinstance(v, int | float) for v in values):
    numbers = list(map(float, values))
    return metrics.student_interval(numbers, "seeds", "number")._asdict()
  return values
