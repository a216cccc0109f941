"""Loads a trained run, split into what each side may see."""

import dataclasses
import pathlib
import re

import jax
import numpy as np

from bdjax import sharding, training
from bdjax.attacks.base import Attack, TriggerVariables
from bdjax.checkpoints import Checkpoint, Checkpoints
from bdjax.defenses.base import Defender
from bdjax.errors import UserError
from bdjax.models import Model, layers
from bdjax.models.masking import masked
from bdjax.runs import directory as layout
from bdjax.runs.config import RunConfig, from_identity
from bdjax.runs.resolve import resolve
from bdjax.runs.run import load_data
from bdjax.runs.setup import digest, make_attack, make_model
from bdjax.runs.trained_run import TrainedRun

# Folded into a run's seed for its defences: none of `setup.make_keys`.
_DEFENSE_STREAM = 1 << 30


def find_runs(path: pathlib.Path) -> list[pathlib.Path]:
  """Return the runs that a directory means: one, or those of a group.

  Raises:
    UserError: there is no run.
  """
  if not path.is_dir():
    raise UserError(f"{path} must be the directory of a trained run")
  if (path / layout.CHECKPOINTS).is_dir():
    return [path]
  members = [
    p
    for p in path.glob("seed-*")
    if re.fullmatch(r"seed-\d+", p.name) and (p / layout.CHECKPOINTS).is_dir()
  ]
  if not members:
    below = sorted(p.parent for p in path.glob(f"*/{layout.CONFIG}"))
    if below and (layout.read_config(path) or {}).get("swept"):
      raise UserError(
        f"{path} is a sweep: use one of its settings, such as {below[0]}"
      )
    raise UserError(
      f"{path} must hold checkpoints: it is no run, or its training has not "
      "started"
    )
  return sorted(members, key=lambda p: (len(p.name), p.name))


def stored_config(directory: pathlib.Path) -> RunConfig:
  """Return the configuration of a run, as its directory tells.

  Raises:
    UserError: it is none of a run, or of an older version.
  """
  stored = layout.read_config(directory)
  if stored is None or "attack" not in stored:
    raise UserError(
      f"{directory} must hold the config.json of a run: for weights made "
      "elsewhere give checkpoint and dataset"
    )
  return from_identity(stored)


def load_run(
  directory: str | pathlib.Path,
  *,
  dataset: str | None = None,
  data_source: str = "auto",
  data_dir: str | None = None,
  seed: int = 0,
) -> TrainedRun:
  """Load a run's data, its attack and its newest checkpoint.

  Args:
    directory: of the run.
    dataset: where the run's `.npz` file is now.
    data_source: as in `data.load`.
    data_dir: likewise.
    seed: of what a defence draws; the run's own is folded into it.

  Raises:
    UserError: no whole checkpoint, or data or weights that do not fit.
  """
  directory = pathlib.Path(directory).expanduser()
  config = stored_config(directory)
  changes = {"data_source": data_source, "data_dir": data_dir}
  if dataset:
    changes["dataset"] = dataset
  config = dataclasses.replace(config, **changes)
  return _load(config, directory, directory / layout.CHECKPOINTS, seed)


def load_checkpoint(
  directory: str | pathlib.Path, config: RunConfig, seed: int = 0
) -> TrainedRun:
  """Load weights that were trained elsewhere; their attack is not known.

  Args:
    directory: of orbax checkpoints.
    config: data set, model, width, stem and `defender_fraction`.
    seed: of what a defence draws.

  Raises:
    UserError: as for `load_run`.
  """
  directory = pathlib.Path(directory).expanduser()
  if not directory.is_dir():
    raise UserError(f"{directory} must be a directory of checkpoints")
  config = resolve(dataclasses.replace(config, precision="float32"))
  return _load(config, directory, directory, seed)


def _load(config, directory, checkpoints, seed) -> TrainedRun:
  splits = load_data(config)
  if config.data_sha256 not in (None, digest(splits.info)):
    raise UserError(
      f"dataset must be the data that {directory} was trained on "
      f"({config.dataset} holds others)"
    )
  if not len(splits.defender.images):
    raise UserError(
      "defender_fraction must be above 0 in training: the run keeps no images "
      "for the defender"
    )
  shape = splits.test.images.shape[1:]
  model = make_model(config, splits.info, shape)
  attack = make_attack(config, shape, splits.info.num_classes)
  model, saved = restore(checkpoints, model, shape, attack)
  mesh = sharding.make_mesh()
  state, generator = sharding.replicate(mesh, (saved.state, saved.generator))
  defender = Defender(
    model,
    state.weights,
    *sharding.replicate(mesh, tuple(splits.defender)),
    splits.info.class_names,
    mesh,
    defense_keys(seed, config.seed)[0],
  )
  variables = generator.variables if attack else TriggerVariables({}, {})
  return TrainedRun(
    directory, config, saved.step, defender, attack, variables, splits
  )


def defense_keys(seed: int, run_seed: int) -> tuple[jax.Array, jax.Array]:
  """Return the keys of a defence and of its evaluation.

  Apart from the run's own streams: a run splits the key of its seed, and the
  number folded in here is none of that split's. The runs of a group draw each
  for themselves.

  Args:
    seed: of the defence.
    run_seed: of the run.
  """
  key = jax.random.fold_in(jax.random.key(seed), _DEFENSE_STREAM)
  return tuple(jax.random.split(jax.random.fold_in(key, run_seed)))


def restore(
  checkpoints: pathlib.Path,
  model: Model,
  shape: tuple[int, int, int],
  attack: Attack | None = None,
) -> tuple[Model, Checkpoint]:
  """Restore the model, and a checkpoint's classifier and generator.

  A network that pruning left there has the masks of one layer besides: then the
  model is a masked one.

  Args:
    checkpoints: their directory.
    model: of the network.
    shape: (H, W, C) of its images.
    attack: None where there is no generator.

  Raises:
    UserError: there is no checkpoint, or it is of another network.
  """
  channels = layers(model, shape)
  candidates = [masked(model, {n: c}) for n, c in channels.items()]
  with Checkpoints(checkpoints, read_only=True) as opened:
    if opened.latest_step() is None:
      raise UserError(f"{checkpoints} must hold a checkpoint: train the run")
    refused = None
    for candidate in (model, *reversed(candidates)):
      try:
        return candidate, opened.restore(*_targets(candidate, attack))
      except UserError as error:
        refused = refused or error
  raise refused


def _targets(model, attack):
  """Say what is restored: no optimisers, and a generator if there is one."""
  key = jax.random.key(0)
  step = jax.ShapeDtypeStruct((), np.int32)
  state = training.TrainState(step, *jax.eval_shape(model.init, key), None)
  if attack is None:
    return state, None
  variables = jax.eval_shape(attack.init, key)
  return state, training.TrainState(step, *variables, None)
