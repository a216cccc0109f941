"""The pruning-aware attack as a run: a run's attack, trained around pruning.

References:
  Liu, Dolan-Gavitt and Garg (2018), Fine-Pruning: Defending Against Backdooring
  Attacks on Deep Neural Networks, section 3.2.
"""

import dataclasses
import pathlib
from typing import Any

import numpy as np

from bdjax import files, provenance
from bdjax import settings as settings_lib
from bdjax.attacks import pruning_aware
from bdjax.checkpoints import Checkpoints
from bdjax.defenses import DEFENSES
from bdjax.errors import UserError
from bdjax.models.masking import check_layer
from bdjax.runs import directory as layout
from bdjax.runs import profiling
from bdjax.runs.combine import combine_defenses
from bdjax.runs.config import identity
from bdjax.runs.defend import DefenseConfig, defend
from bdjax.runs.load import defense_keys, find_runs, load_run
from bdjax.runs.pruning_aware_training import train_around_pruning
from bdjax.runs.trained_run import TrainedRun
from bdjax.settings import setting
from bdjax.training import TrainState

# What the run and the clean run must share.
_ALIKE = (
  *("dataset", "model", "width", "stem", "seed"),
  *("defender_fraction", "data_sha256"),
)
# (defence, suffix of its scores, name of the result).
_DEFENDED = (
  ("pruning", "at_0.04", "pruned"),
  ("fine_pruning", "repaired", "fine_pruned"),
)


def _method(default, text, **meta):
  return setting(default, text, group="attack", **meta)


def _run(default, text, **meta):
  return setting(default, text, group="run", **meta)


@dataclasses.dataclass(frozen=True)
class PruningAwareConfig:
  """Settings of the pruning-aware attack."""

  run: str | None = _run(
    None, "Run of an attack, runs/NAME, or a group of seeds.", free=True
  )
  clean_run: str | None = _run(
    None, "Same model trained clean: a run, or a group as run is.", free=True
  )
  layer: str | None = _method(
    None, "Layer whose dormant channels are left out (default: the last)."
  )
  drop: float = _method(
    0.005,
    "Drop of the accuracy on training images that leaving them out may cost.",
    above=0,
    below=1,
  )
  epochs: int | None = _method(
    None, "Epochs of the backdoor's training (default: those of run).", low=1
  )
  margin: float = _method(
    0.1,
    "Share by which the biases are lowered more than needed.",
    low=0,
  )
  dataset: str | None = _run(
    None, "Place of the runs' .npz file now.", free=True
  )
  data_source: str = _run(
    "auto", "Source of the bytes, as in training.", free=True
  )
  data_dir: str | None = _run(
    None, "Directory of data, as in training.", free=True
  )
  seed: int = _run(
    0, "Random seed of the scores and of fine-pruning.", low=0, high=2**31 - 1
  )
  eval_images: int | None = _run(
    None, "Test images to score on (default: all).", low=2
  )
  output: str | None = _run(
    None, "Directory of the new run (default: RUN-pruning_aware).", free=True
  )
  overwrite: bool = _run(
    False, "Start over where there are results.", free=True
  )
  profile: str | None = _run(
    None,
    "Directory for a trace of the second to the fourth call of the training.",
    free=True,
  )


def pruning_aware_run(
  config: PruningAwareConfig,
) -> tuple[dict[str, Any], pathlib.Path]:
  """Train a run's attack around pruning, and defend the old and the new run.

  Leaves a run of the attack, which every defence takes as any other.

  Args:
    config: of the attack.

  Returns:
    What `results.json` of the new run or group says, and its directory.

  Raises:
    UserError: something the user can put right.
  """
  settings_lib.check(config)
  profiling.check(config.profile)
  for name in ("run", "clean_run"):
    if getattr(config, name) is None:
      raise UserError(
        f"{name} must be given: run is of an attack, and clean_run of the same "
        "model trained clean"
      )
  root = pathlib.Path(config.run).expanduser()
  output = root.with_name(f"{root.name}-pruning_aware")
  output = pathlib.Path(config.output).expanduser() if config.output else output
  runs = find_runs(root)
  clean_runs = find_runs(pathlib.Path(config.clean_run).expanduser())
  if len(runs) != len(clean_runs):
    raise UserError(
      f"clean_run must have as many seeds as run, {len(runs)} (got "
      f"{len(clean_runs)})"
    )
  results = []
  for path, clean_path in zip(runs, clean_runs, strict=True):
    directory = output if path == root else output / path.name
    results.append(_attack(config, path, clean_path, directory))
  if runs == [root]:
    return results[0], output
  combined = combine_defenses(results) | {"runs": [path.name for path in runs]}
  with files.disk_errors(output, "another output"):
    layout.write_results(output, combined)
  return combined, output


def _attack(config, path, clean_path, directory) -> dict[str, Any]:
  """Attack one run, or return existing results."""
  run, clean = (
    load_run(
      each,
      dataset=config.dataset,
      data_source=config.data_source,
      data_dir=config.data_dir,
      seed=config.seed,
    )
    for each in (path, clean_path)
  )
  _check_runs(run, clean)
  layer = check_layer(
    run.defender.model, run.defender.image_shape, config.layer
  )
  pruning_aware.bias_path(run.defender.model, layer)  # before any training
  # As the run's own, so that defences see a run of its attack.
  about = identity(run.config) | {
    "pruning_aware": settings_lib.identity(config)
    | {"of": run.identity(), "clean": clean.identity()}
  }
  with layout.open_directory(
    directory, about, overwrite=config.overwrite, hint="output"
  ):
    return layout.load_or_compute(
      directory, lambda: _results(config, run, clean, layer, directory, about)
    )


def _check_runs(run: TrainedRun, clean: TrainedRun) -> None:
  if run.attack is None:
    raise UserError(f"run must be of an attack ({run.directory} is clean)")
  if clean.attack is not None:
    raise UserError(f"clean_run must be clean ({clean.directory} is not)")
  for name in _ALIKE:
    own, other = getattr(run.config, name), getattr(clean.config, name)
    if own != other:
      raise UserError(
        f"clean_run must have the same {name} ({clean.directory} has {other}, "
        f"{run.directory} {own})"
      )


def _results(config, run, clean, layer, directory, about) -> dict[str, Any]:
  """Train, score and defend; return what goes into `results.json`."""
  network = train_around_pruning(
    run,
    clean,
    layer,
    directory,
    drop=config.drop,
    margin=config.margin,
    epochs=config.epochs,
    profile=config.profile,
  )
  _save(network, run.step, directory)
  key = defense_keys(config.seed, run.config.seed)[1]
  evaluator = run._replace(variables=network.variables).evaluator(
    key, config.eval_images
  )
  scores = evaluator.scores(run.defender.model, network.weights)
  plain = directory / layout.DEFENSES / "plain"
  return {
    "config": about,
    "measured": {name: score._asdict() for name, score in scores.items()}
    | {"dormant_channels": network.channels}
    | _defended("plain", config, run.directory, plain)
    | _defended("aware", config, directory, None),
    "reported": {},
    "details": {
      "layer": layer,
      "poisoned_share": network.training.poisoned_share,
    },
    **provenance.environment(run.splits.info),
    "git_commit": {
      "training": network.training.commits,
      "evaluation": provenance.git_commit(),
    },
    "seeds": [run.config.seed],
    "seconds": network.training.seconds,
    "peak_memory_bytes": provenance.peak_memory_bytes(),
  }


def _save(network, step, directory) -> None:
  """Keep the network as a run of the attack does, in `checkpoints/`."""
  state = TrainState(np.int32(step), *network.weights, None)
  generator = TrainState(np.int32(step), *network.variables, None)
  with Checkpoints(directory / layout.CHECKPOINTS) as checkpoints:
    if checkpoints.latest_step() is None:
      checkpoints.save(step, state, generator, {}, 0.0)


def _defended(name, config, path, output) -> dict[str, Any]:
  """Score a run after pruning, and after fine-pruning."""
  measured = {}
  for defense, suffix, title in _DEFENDED:
    method = DEFENSES[defense]
    results = defend(
      method,
      method.settings(layer=config.layer),
      DefenseConfig(
        run=str(path),
        dataset=config.dataset,
        data_source=config.data_source,
        data_dir=config.data_dir,
        eval_images=config.eval_images,
        seed=config.seed,
        output=None if output is None else str(output / defense),
      ),
    )
    for score in ("clean_accuracy", "attack_success_rate"):
      value = results["measured"][f"{score}_{suffix}"]
      measured[f"{score}_{name}_{title}"] = value
  return measured
