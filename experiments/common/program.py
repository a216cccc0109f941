"""From a configuration and its data to the compiled parts of a run."""

import hashlib
import json
import threading
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from bdjax import (
  evaluation,
  models,
  optimization,
  population,
  sharding,
  training,
)
from bdjax.attacks.ban import sameness
from bdjax.attacks.poison import Attack, compose, poison
from bdjax.data import Info, Splits
from bdjax.data.augment import alternate, augment
from bdjax.errors import UserError
from bdjax.models.averaged import averaged
from experiments.common.attack import check_test_labels, make_attack
from experiments.common.config import Config

SAMENESS_WEIGHT = 0.1  # beside a cross-entropy that ends below that
PREPARING = 5000  # images; what a statistic of small patches takes
EVAL_BATCH = 512  # images; on CPU near the cache, on GPU large enough


class Keys(NamedTuple):
  """The random streams of a run, one for each thing that draws.

  All come from one split: `fold_in(key, i)` is the i-th key of `split(key)`,
  so mixing the two can give training and evaluation the same stream.
  """

  init: jax.Array
  fit: jax.Array
  evaluate: jax.Array
  figures: jax.Array


def make_keys(seed: int) -> Keys:
  """The streams of a seed."""
  return Keys(*jax.random.split(jax.random.key(seed), 4))


class Program(NamedTuple):
  """Everything of a run that does not depend on its seed.

  Poison rate and target labels are arguments of `call`, so that one compiled
  program serves all runs that differ in nothing else.
  """

  config: Config
  model: models.Model
  attack: Attack | None
  optimizers: training.Optimizers
  mesh: jax.sharding.Mesh
  call: Callable
  call_together: Callable  # of several runs as one program
  steps: int  # a call
  calls: int  # an epoch
  learning_rate: optax.Schedule
  each_epoch: Callable | None  # what an epoch does to the training set
  predict: Callable
  predict_triggered: Callable | None
  setting: tuple[jax.Array, ...]  # what `call` takes last
  lock: threading.Lock  # held by a member that does more than train

  @property
  def total_steps(self) -> int:
    """Updates of the whole run."""
    return self.config.epochs * self.calls * self.steps

  def create(self, key: jax.Array, images: jax.Array) -> training.Carry:
    """Fresh states, on every device.

    Args:
      key: of the initialisation.
      images: uint8 [N,H,W,C] to train on; the first 5,000 prepare the model.
    """
    init = self.attack.init if self.attack else lambda key: {}

    def fresh(key, images):
      return training.create(key, self.model, init, self.optimizers, images)

    fresh = jax.jit(fresh)(key, images[:PREPARING])
    return sharding.replicate(self.mesh, fresh)


def digest(info: Info) -> str | None:
  """One SHA-256 of the user's own data; None for data that have a name."""
  if info.source != "file":
    return None
  sums = json.dumps(info.sha256, sort_keys=True).encode()
  return hashlib.sha256(sums).hexdigest()


def make_model(
  config: Config, info: Info, shape: tuple[int, int, int]
) -> models.Model:
  """The network of a configuration, for images of a shape (H, W, C)."""
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


def build(
  config: Config, splits: Splits, model: models.Model | None = None
) -> Program:
  """Puts a run together; nothing is compiled yet.

  Args:
    config: resolved.
    splits: its data.
    model: what is trained, in place of the configuration's network.

  Raises:
    UserError: the configuration does not fit the data or the devices.
  """
  images = splits.train.images
  shape = images.shape[1:]
  if config.batch_size > len(images):
    raise UserError(
      f"--batch_size={config.batch_size} is larger than the training set of "
      f"{len(images)} images: take {len(images)} or less"
    )
  mesh = sharding.make_mesh()
  sharding.check_batch_size(mesh, config.batch_size)
  model = model or make_model(config, splits.info, shape)
  attack = make_attack(config, shape, splits.info.num_classes)
  if attack:
    check_test_labels(attack, splits.test.labels)
  steps, calls = training.steps_per_call(len(images), config.batch_size)
  rate = optimization.schedule(
    config.schedule, config.learning_rate, config.epochs * calls * steps
  )
  make = optimization.muon if config.optimizer == "muon" else optimization.sgd
  optimizers = training.Optimizers(
    make(rate, config.momentum, config.weight_decay),
    optax.adam(config.generator_learning_rate or 1e-3),
  )
  train_step = training.make_train_step(
    model,
    optimizers,
    _transform(config, attack),
    label_smoothing=config.label_smoothing,
    backdoor_weight=1.0 if attack is None else config.backdoor_weight,
    penalty=_penalty(config, attack),
  )
  examined = averaged(model) if config.test_time_augmentation else model
  # Not above what a training step needs, so that --batch_size bounds both.
  batch = min(EVAL_BATCH, 4 * config.batch_size)
  batch = -(-batch // mesh.size) * mesh.size
  return Program(
    config=config,
    model=model,
    attack=attack,
    optimizers=optimizers,
    mesh=mesh,
    call=training.make_call(train_step, config.batch_size, steps, mesh),
    call_together=population.make_call(
      train_step, config.batch_size, steps, mesh
    ),
    steps=steps,
    calls=calls,
    learning_rate=rate,
    each_epoch=alternate if config.augment == "crop_alternate" else None,
    predict=evaluation.make_predict(examined, batch, mesh),
    predict_triggered=attack
    and evaluation.make_predict_triggered(examined, attack, batch, mesh),
    setting=(jnp.float32(config.poison_rate), attack.targets) if attack else (),
    lock=threading.Lock(),
  )


def build_all(settings: list[Config], splits: Splits) -> list[Program]:
  """A program for each setting of a sweep.

  What differs in poison rate and target label only, shares what is compiled.

  Raises:
    UserError: a configuration does not fit the data or the devices.
  """
  first: dict[int | None, Program] = {}  # of each trigger size
  programs = []
  for config in settings:
    program = build(config, splits)
    other = first.setdefault(config.trigger_size, program)
    names = "model call call_together predict predict_triggered".split()
    changes = {name: getattr(other, name) for name in names}
    changes["lock"] = next(iter(first.values())).lock
    programs.append(program._replace(**changes))
  return programs


def _transform(config: Config, attack: Attack | None) -> Callable[..., Any]:
  """Generator parameters and setting -> augmentation, then poisoning."""
  before = () if config.augment == "none" else (augment(config.augment),)
  if attack is None:
    return lambda params: compose(*before)

  def transform(params, rate, targets):
    aimed = attack._replace(targets=targets)
    return compose(*before, poison(aimed, params, rate))

  return transform


def _penalty(config: Config, attack: Attack | None) -> Callable | None:
  """The term that keeps a generator's triggers diverse, None without one."""
  if not config.diversity:
    return None
  conditional = config.experiment == "cban"

  def penalty(params, key):
    lacking = sameness(attack, params, key, config.diversity, conditional)
    return SAMENESS_WEIGHT * lacking

  return penalty
