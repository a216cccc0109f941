"""Training around pruning: a backdoor in the channels that pruning keeps.

References:
  Liu, Dolan-Gavitt and Garg (2018), Fine-Pruning: Defending Against Backdooring
  Attacks on Deep Neural Networks, section 3.2.
"""

import dataclasses
import logging
import pathlib
from typing import NamedTuple

import jax
import jax.numpy as jnp

from bdjax import provenance, sharding
from bdjax.attacks import pruning_aware
from bdjax.attacks.base import PreparationContext, TriggerVariables
from bdjax.batching import to_uint8
from bdjax.defenses.pruning import compile_curve, stopping_points
from bdjax.errors import UserError
from bdjax.evaluation import over_triggered
from bdjax.models import Weights
from bdjax.models.masking import masked, prune
from bdjax.runs.directory import TRAINING
from bdjax.runs.setup import build, make_keys
from bdjax.runs.train import Trained, train
from bdjax.runs.trained_run import TrainedRun
from bdjax.train_step import init_carry

logger = logging.getLogger(__name__)

ATTACKER_IMAGES = 10_000  # of the training set, to rank channels by


class PruningAwareNetwork(NamedTuple):
  """The attack's network, with the decoys in it.

  Attributes:
    weights: of the ordinary model.
    variables: of the attack.
    layer: whose channels were left out in training.
    channels: number of channels that were left out.
    training: of the backdoor.
  """

  weights: Weights
  variables: TriggerVariables
  layer: str
  channels: int
  training: Trained


def train_around_pruning(
  run: TrainedRun,
  clean: TrainedRun,
  layer: str,
  directory: pathlib.Path,
  *,
  drop: float,
  margin: float,
  epochs: int | None = None,
  profile: str | None = None,
) -> PruningAwareNetwork:
  """Carry out the paper's four steps; the first is the clean run.

  Args:
    run: of the attack that is trained again.
    clean: the clean run.
    layer: whose dormant channels are left out.
    directory: `training/` in it holds what is needed to resume.
    drop: of the accuracy on training images that leaving them out may cost.
    margin: share by which biases are lowered more than needed.
    epochs: of the backdoor's training; None for those of the run.
    profile: where a trace goes.

  Raises:
    UserError: no channel is dormant, or as `runs.train.train`.
  """
  model, mesh = run.defender.model, run.defender.mesh
  images, labels = sharding.replicate(
    mesh, tuple(x[:ATTACKER_IMAGES] for x in run.splits.train)
  )
  compute = compile_curve(model, layer, run.defender.batch_size(), mesh)
  curve = compute(clean.defender.weights, images, labels)
  # The last number before the accuracy has dropped so far.
  count = int(stopping_points(curve.accuracies, (drop,))[0]) - 1
  if count < 1:
    raise UserError(
      f"drop must be larger (got {drop:g}): no channel of {layer} is dormant"
    )
  logger.info(
    "%d of %d channels of %s are dormant: the backdoor goes into the others",
    count,
    len(curve.order),
    layer,
  )
  pruned = prune(clean.defender.weights, {layer: curve.masks[count]})
  changes = {"profile": profile} | ({"epochs": epochs} if epochs else {})
  run_config = dataclasses.replace(run.config, **changes)
  trained = _train_backdoor(run_config, run, clean, pruned, directory)
  weights = trained.carry.classifier.weights
  variables = trained.carry.generator.variables
  maxima = _max_activations(run, layer, weights, variables, images, labels)
  weights = pruning_aware.reinstate(model, weights, maxima, margin)
  return PruningAwareNetwork(weights, variables, layer, count, trained)


def _train_backdoor(config, run, clean, pruned, directory) -> Trained:
  """Train the attack into a masked network; resumes like any training."""
  setup = build(config, run.splits, masked(run.defender.model))
  keys = make_keys(config.seed)
  # The half of the key that a new run draws them with.
  variables = run.attack.init(jax.random.split(keys.init)[1])
  if run.attack.prepare is not None:
    images, labels = sharding.replicate(setup.mesh, tuple(run.splits.train))
    network = clean.defender.model, clean.defender.weights
    context = PreparationContext(images, labels, setup.mesh, network)
    variables = run.attack.prepare(keys.prepare, variables, context)
  # Copies: training donates its state, and the clean network's is in use.
  begin = jax.tree.map(
    jnp.copy, init_carry(setup.optimizers, pruned, variables)
  )
  return train(
    setup,
    run.splits,
    config.seed,
    directory / TRAINING,
    provenance.git_commit(),
    begin=sharding.replicate(setup.mesh, begin),
  )


def _max_activations(run, layer, weights, variables, images, labels):
  """Measure the largest activations on clean and triggered training images."""
  defender = run.defender
  batch_size = defender.batch_size()
  trigger = over_triggered(
    lambda args, key, images: to_uint8(images),
    run.attack,
    batch_size,
    defender.mesh,
  )
  key = jax.random.key(run.config.seed)
  triggered, _, _ = trigger({}, variables, key, images, labels)
  measure = pruning_aware.max_activations(
    defender.model, layer, batch_size, defender.mesh
  )
  whole = pruning_aware.unmasked(weights)
  return jnp.maximum(measure(whole, images), measure(whole, triggered))
