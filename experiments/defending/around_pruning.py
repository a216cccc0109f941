"""Trains a run's attack again, into the channels that pruning would leave.

Liu et al. (2018), section 3.2; `bdjax/attacks/pruning_aware.py` has the part
of the network.
"""

import dataclasses
import pathlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bdjax import evaluation, sharding, training
from bdjax.attacks import pruning_aware
from bdjax.checkpoints import Checkpoints
from bdjax.defenses import pruning
from bdjax.errors import UserError
from bdjax.models import Weights
from bdjax.training import TrainState
from experiments.common import results
from experiments.common.program import build, make_keys
from experiments.common.runner import Report
from experiments.common.train import train
from experiments.defending.subject import Subject

ATTACKER_IMAGES = 10_000  # of the training set, to rank channels by


class Trained(NamedTuple):
  """The attack's network, whole again.

  Attributes:
    weights: with the channels put back.
    generator: parameters of the trigger generator.
    channels: how many were left out.
    seconds: of the training.
  """

  weights: Weights
  generator: Any
  channels: int
  seconds: float


def train_around(
  config: Any,
  subject: Subject,
  start: Subject,
  directory: pathlib.Path,
  report: Report,
) -> Trained:
  """The paper's four steps; the first is the clean run.

  Args:
    config: of `experiments.pruning_aware`: layer, drop, epochs and margin.
    subject: the run of the attack.
    start: the clean run.
    directory: `training/` in it holds what is needed to go on after a stop.
    report: takes one line.

  Raises:
    UserError: no channel is dormant, or as `train`.
  """
  model, mesh = subject.defender.model, subject.defender.mesh
  images, labels = sharding.replicate(
    mesh, tuple(x[:ATTACKER_IMAGES] for x in subject.splits.train)
  )
  layer = pruning.check_layer(model, subject.defender.shape, config.layer)
  make = pruning.make_curve(model, layer, subject.defender.batch(), mesh)
  curve = make(start.defender.weights, images, labels)
  # The last before the accuracy has fallen so far.
  count = int(pruning.stops(curve.accuracies, (config.drop,))[0]) - 1
  if count < 1:
    raise UserError(
      f"no channel of {layer} is dormant at --drop={config.drop}: take a "
      "larger one"
    )
  report(
    f"{count} of {len(curve.order)} channels of {layer} are dormant: the "
    "backdoor goes into the others"
  )
  begin = pruning.prune(start.defender.weights, {layer: curve.masks[count]})
  trained = _backdoor(config, subject, begin, directory, report)
  weights = Weights(trained.carry.state.params, trained.carry.state.batch_stats)
  generator = trained.carry.generator.params
  maxima = _maxima(subject, layer, weights, generator, images, labels)
  return Trained(
    pruning_aware.reinstate(weights, maxima, config.margin),
    generator,
    count,
    trained.seconds["train"],
  )


def _backdoor(config, subject, begin, directory, report):
  """Trains the attack into a masked network; resumes like any training."""
  changes = {"epochs": config.epochs} if config.epochs else {}
  resolved = dataclasses.replace(
    subject.config,
    checkpoint_seconds=60.0,
    profile=config.profile,
    **changes,
  )
  program = build(
    resolved, subject.splits, pruning.masked(subject.defender.model)
  )
  zero = jnp.zeros((), jnp.int32)
  key = make_keys(resolved.seed).init
  generator = subject.attack.init(key)
  carry = training.Carry(
    TrainState(zero, *begin, program.optimizers.state.init(begin.params)),
    TrainState(
      jnp.zeros((), jnp.int32),
      generator,
      {},
      program.optimizers.generator.init(generator),
    ),
  )
  # Copies: training donates its state, and the clean network's is in use.
  carry = jax.tree.map(jnp.copy, carry)
  return train(
    program,
    subject.splits,
    resolved.seed,
    directory / "training",
    results.git_commit(),
    report,
    sharding.replicate(program.mesh, carry),
  )


def _maxima(subject, layer, weights, generator, images, labels):
  """The largest activations on clean and on triggered training images."""
  defender = subject.defender
  trigger = evaluation.over_triggered(
    lambda args, key, images: jnp.round(255 * images).astype(jnp.uint8),
    subject.attack,
    defender.batch(),
    defender.mesh,
  )
  key = jax.random.key(subject.config.seed)
  triggered, _, _ = trigger({}, generator, key, images, labels)
  measure = pruning_aware.max_activations(
    defender.model, layer, defender.batch(), defender.mesh
  )
  whole = pruning_aware.unmasked(weights)
  return jnp.maximum(measure(whole, images), measure(whole, triggered))


def save(directory: pathlib.Path, subject: Subject, trained: Trained) -> None:
  """Keeps the network as a run of the attack does, in `checkpoints/`."""
  state = TrainState(np.int32(subject.step), *trained.weights, None)
  generator = TrainState(np.int32(subject.step), trained.generator, {}, None)
  with Checkpoints(directory / "checkpoints") as checkpoints:
    if checkpoints.latest_step() is None:
      checkpoints.save(subject.step, state, generator, {}, 0.0)
