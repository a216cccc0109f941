"""From a configuration and its data to the compiled parts of a run."""

import hashlib
import json
import threading
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from bdjax import (
  evaluation,
  models,
  optimization,
  population,
  sharding,
  training,
)
from bdjax.attacks import triggers
from bdjax.attacks.badnets import badnets
from bdjax.attacks.ban import ban, sameness
from bdjax.attacks.cban import cban
from bdjax.attacks.poison import Attack, compose, poison
from bdjax.attacks.random_backdoor import random_backdoor
from bdjax.data import Info, Splits
from bdjax.data.augment import alternate, augment
from bdjax.errors import UserError
from bdjax.models.averaged import averaged
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


def parse_targets(text: str, num_classes: int) -> tuple[int, ...]:
  """Target labels from their flag.

  Raises:
    UserError: not numbers, out of range or twice the same.
  """
  if text == "all":
    return tuple(range(num_classes))
  try:
    labels = tuple(int(part) for part in text.split(","))
  except ValueError:
    raise UserError(
      f"--target_labels={text}: take all, or numbers with commas"
    ) from None
  if min(labels) < 0 or max(labels) >= num_classes:
    raise UserError(
      f"--target_labels={text} is out of range: the labels are 0 to "
      f"{num_classes - 1}"
    )
  if len(set(labels)) < len(labels):
    raise UserError(f"--target_labels={text} names a label twice")
  return labels


def parse_locations(
  text: str, num: int, size: int, height: int, width: int
) -> np.ndarray:
  """Boxes int32 [num,L,4] from their flag.

  Raises:
    UserError: not of the flag's form, or the trigger does not fit.
  """
  if text == "anywhere":
    boxes = triggers.whole_image(num, height, width)
  elif text == "grid":
    boxes = triggers.grid(num, height, width)
  elif text == "corner":
    corner = [height - size, width - size, height, width]
    boxes = np.tile(np.array(corner, np.int32), (num, 1, 1))
  else:
    sets = [_corners(part, text) for part in text.split(";")]
    if len(sets) not in (1, num) or len({len(s) for s in sets}) > 1:
      raise UserError(
        f"--locations={text}: take one set of corners for all {num} target "
        "labels, or one of equal length for each"
      )
    corners = np.broadcast_to(np.array(sets), (num, len(sets[0]), 2))
    boxes = np.concatenate([corners, corners + size], -1)
  triggers.check_boxes(boxes, size, height, width)
  return boxes.astype(np.int32)


def _corners(part: str, text: str) -> list[tuple[int, int]]:
  try:
    corners = [tuple(map(int, c.split(":"))) for c in part.split(",")]
    if any(len(c) != 2 or max(c) > 2**20 for c in corners):
      raise ValueError
  except ValueError:
    raise UserError(
      f"--locations={text}: take anywhere, grid, corner, or TOP:LEFT with "
      "commas"
    ) from None
  return corners


def make_attack(
  config: Config, shape: tuple[int, int, int], num_classes: int
) -> Attack | None:
  """The attack of a configuration, None for `clean`.

  Raises:
    UserError: targets, locations or size do not fit the data.
  """
  if config.experiment == "clean":
    return None
  height, width, channels = shape
  targets = parse_targets(config.target_labels, num_classes)
  size = config.trigger_size
  boxes = parse_locations(config.locations, len(targets), size, height, width)
  common = (targets, boxes, size, channels)
  if config.experiment == "cban":
    return cban(*common, config.noise_dim, config.generator_width)
  if config.all_to_all:
    if targets != tuple(range(num_classes)):
      raise UserError(
        f"--target_labels={config.target_labels} contradicts --all_to_all, in "
        "which every label is a target: leave one of them out"
      )
    return badnets(*common, num_classes)
  places = boxes.reshape(-1, 4)
  if len(targets) > 1 and len(np.unique(places, axis=0)) < len(places):
    raise UserError(
      f"several targets of {config.experiment} need places of their own, which "
      "name the label: take --locations=grid, a set of corners for each, or "
      "experiments.cban"
    )
  if config.experiment == "badnets":
    return badnets(*common)
  if config.experiment == "ban":
    return ban(*common, config.noise_dim, config.generator_width)
  return random_backdoor(*common)


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
  _check_test_labels(attack, splits.test.labels)
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


def _check_test_labels(attack: Attack | None, labels: np.ndarray) -> None:
  if attack is None:
    return
  possible = np.asarray(attack.eligible(labels)).any(0)
  for target in np.asarray(attack.targets)[~possible].tolist():
    raise UserError(
      f"no test image can be triggered towards the target label {target}, so "
      "there is none to measure the attack on; take another --target_labels"
    )


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
