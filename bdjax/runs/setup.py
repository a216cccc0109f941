"""From a configuration and its data to the compiled parts of a run."""

import hashlib
import json
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from bdjax import models, optimization, sharding, training
from bdjax.attacks.base import Attack, no_variables
from bdjax.data import Info, Splits
from bdjax.data.augment import alternate, augment
from bdjax.errors import UserError
from bdjax.evaluation.attack_scores import (
  BATCH_SIZE,
  Predictors,
  compile_predictors,
)
from bdjax.models.test_time_augmentation import with_test_time_augmentation
from bdjax.runs.config import RunConfig, identity

PREPARING = 5000  # images; what a statistic of small patches takes


class Keys(NamedTuple):
  """The random streams of a run, one for each thing that draws.

  `fold_in(key, i)` is the i-th key of `split(key)`: the last two are drawn by
  `fold_in` beyond what the split has, so that the first four stay as they are.
  """

  init: jax.Array
  fit: jax.Array
  evaluate: jax.Array
  figures: jax.Array
  poison: jax.Array
  prepare: jax.Array


def make_keys(seed: int) -> Keys:
  """Return the streams of a seed."""
  root = jax.random.key(seed)
  extra = (jax.random.fold_in(root, number) for number in (4, 5))
  return Keys(*jax.random.split(root, 4), *extra)


class Setup(NamedTuple):
  """Everything of a run that does not depend on its seed.

  With batches poisoned by chance, poison rate and target labels are arguments
  of `call`, so that one compiled program serves all runs that differ in nothing
  else.

  Attributes:
    config: resolved.
    model: the classifier.
    attack: None for a clean run.
    optimizers: of both networks.
    mesh: the devices.
    call: from `training.compile_steps`.
    steps: updates a call.
    calls: calls an epoch.
    learning_rate: its schedule.
    each_epoch: what an epoch does to the training set, or None.
    predictors: compiled predictions.
    setting: what `call` takes last.
  """

  config: RunConfig
  model: models.Model
  attack: Attack | None
  optimizers: training.Optimizers
  mesh: jax.sharding.Mesh
  call: Callable
  steps: int
  calls: int
  learning_rate: optax.Schedule
  each_epoch: Callable | None
  predictors: Predictors
  setting: tuple[jax.Array, ...]

  @property
  def total_steps(self) -> int:
    """Updates of the whole run."""
    return self.config.epochs * self.calls * self.steps

  @property
  def poisons_dataset(self) -> bool:
    """Whether the data set is poisoned once, and not each batch."""
    return self.attack is not None and self.config.settings.poison == "dataset"

  def init(self, key: jax.Array, images: jax.Array) -> training.Carry:
    """Return new states, on every device.

    Args:
      key: of the initialisation.
      images: uint8 [N,H,W,C] to train on; the first 5,000 prepare the model.
    """
    attack_init = self.attack.init if self.attack else no_variables

    def init(key, images):
      return training.init(
        key, self.model, attack_init, self.optimizers, images
      )

    carry = jax.jit(init)(key, images[:PREPARING])
    return sharding.replicate(self.mesh, carry)


def digest(info: Info) -> str | None:
  """Return one SHA-256 of the user's own data; None for data with a name."""
  if info.source != "file":
    return None
  sums = json.dumps(info.sha256, sort_keys=True).encode()
  return hashlib.sha256(sums).hexdigest()


def make_model(
  config: RunConfig, info: Info, shape: tuple[int, int, int]
) -> models.Model:
  """Return the network of a configuration, for images of shape (H, W, C)."""
  return models.get(
    config.model,
    image_shape=shape,
    num_classes=info.num_classes,
    mean=info.mean,
    std=tuple(max(s, 1e-3) for s in info.std),
    width=config.width,
    stem=config.stem,
    precision=config.precision,
  )


def make_attack(
  config: RunConfig, shape: tuple[int, int, int], num_classes: int
) -> Attack | None:
  """Return the attack of a configuration, None for a clean run.

  Raises:
    UserError: its settings do not fit the data.
  """
  if config.attack is None:
    return None
  return config.method.make(config.settings, shape, num_classes)


def check_test_labels(attack: Attack, labels: np.ndarray) -> None:
  """Refuse a target label that no test image can be triggered towards.

  Args:
    attack: of the run.
    labels: int [N], of the test images.

  Raises:
    UserError: there is such a target.
  """
  possible = np.asarray(attack.eligible(jnp.asarray(labels))).any(0)
  for target in np.asarray(attack.targets)[~possible].tolist():
    raise UserError(
      f"target_labels must leave test images to trigger (none can be triggered "
      f"towards {target})"
    )


def build(
  config: RunConfig, splits: Splits, model: models.Model | None = None
) -> Setup:
  """Put a run together; nothing is compiled yet.

  Args:
    config: resolved.
    splits: its data.
    model: what is trained, in place of the configuration's network.

  Raises:
    UserError: the configuration does not fit the data or the devices.
  """
  images = splits.train.images
  if config.batch_size > len(images):
    raise UserError(
      f"batch_size must be at most {len(images)}, the number of training "
      f"images (got {config.batch_size})"
    )
  mesh = sharding.make_mesh()
  sharding.check_batch_size(mesh, config.batch_size)
  model = model or make_model(config, splits.info, images.shape[1:])
  attack = make_attack(config, images.shape[1:], splits.info.num_classes)
  if attack:
    check_test_labels(attack, splits.test.labels)
  steps, calls = training.steps_per_call(len(images), config.batch_size)
  total = config.epochs * calls * steps
  rate = optimization.schedule(config.schedule, config.learning_rate, total)
  make = optimization.muon if config.optimizer == "muon" else optimization.sgd
  optimizers = training.Optimizers(
    make(rate, config.momentum, config.weight_decay),
    attack.optimizer(total) if attack else optax.identity(),
  )
  transform, setting = _transform(config, attack)
  train_step = training.make_train_step(
    model,
    optimizers,
    transform,
    label_smoothing=config.label_smoothing,
    backdoor_weight=config.settings.backdoor_weight if attack else 1.0,
    attack_loss=attack.loss if attack else None,
  )
  scored = model
  if config.test_time_augmentation:
    scored = with_test_time_augmentation(model)
  # Not above what a training step needs, so that batch_size bounds both.
  batch = min(BATCH_SIZE, 4 * config.batch_size)
  batch = -(-batch // mesh.size) * mesh.size
  return Setup(
    config=config,
    model=model,
    attack=attack,
    optimizers=optimizers,
    mesh=mesh,
    call=training.compile_steps(train_step, config.batch_size, steps, mesh),
    steps=steps,
    calls=calls,
    learning_rate=rate,
    each_epoch=alternate if config.augment == "crop_alternate" else None,
    predictors=compile_predictors(scored, attack, mesh, batch),
    setting=setting,
  )


def _transform(config: RunConfig, attack: Attack | None):
  """Return a step's transform, and the setting that it takes."""
  before = None if config.augment == "none" else augment(config.augment)
  if attack is None or config.settings.poison == "dataset":
    return training.plain(_first_of_split(before)), ()
  rate = config.settings.poison_rate
  if attack.counts_rows:
    return training.poisoning(attack, before, rate), ()
  return training.poisoning(attack, before), (
    jnp.float32(rate),
    attack.targets,
  )


def _first_of_split(transform):
  """Give an augmentation the key that it has where poisoning follows it."""
  if transform is None:
    return None
  return lambda key, batch: transform(jax.random.fold_in(key, 0), batch)


def build_all(settings: list[RunConfig], splits: Splits) -> list[Setup]:
  """Return the setup of each setting of a sweep; equal programs are shared.

  Raises:
    UserError: a configuration does not fit the data or the devices.
  """
  calls: dict[str, Setup] = {}
  predictors: dict[str, Setup] = {}
  setups = []
  for config in settings:
    setup = build(config, splits)
    call = calls.setdefault(_program_key(setup), setup)
    predict = predictors.setdefault(_predictors_key(setup), setup)
    setups.append(
      setup._replace(
        call=call.call, model=call.model, predictors=predict.predictors
      )
    )
  return setups


def _program_key(setup: Setup) -> str:
  """Return what the training program closes over, as text."""
  values = identity(setup.config)
  left_out = {"seed", "group", "swept", "run_name"}
  if setup.poisons_dataset:  # the program never sees the attack
    own = {f for f in vars(setup.config.settings) if f != "backdoor_weight"}
    left_out |= own | {"attack", "trigger_sha256"}
  elif setup.attack is not None and not setup.attack.counts_rows:
    left_out |= {"poison_rate", "target_labels"}
    values["num_targets"] = len(setup.attack.targets)
  kept = {k: v for k, v in values.items() if k not in left_out}
  return json.dumps(kept, sort_keys=True)


def _predictors_key(setup: Setup) -> str:
  """Return what the predictions close over, as text."""
  values = identity(setup.config)
  left_out = {"seed", "group", "swept", "poison_rate", "target_labels"}
  if setup.attack is not None:
    values["num_targets"] = len(setup.attack.targets)
  kept = {k: v for k, v in values.items() if k not in left_out}
  return json.dumps(kept, sort_keys=True)
