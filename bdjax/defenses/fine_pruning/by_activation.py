"""Fine-pruning by activation: dormant channels go, the rest is tuned.

Pruned channels stay pruned while tuning, by their masks in the forward pass.
"""

import logging
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from bdjax.defenses.base import Defender, Repair, check_finite
from bdjax.defenses.fine_pruning.settings import (
  FinePruningSettings,
  compile_tuning_of,
)
from bdjax.defenses.pruning import (
  PruningCurve,
  compile_curve,
  stopping_points,
)
from bdjax.models import Model, Weights
from bdjax.models.masking import check_layer, masked, prune

logger = logging.getLogger(__name__)


class PrunedByActivation(NamedTuple):
  """A network pruned by activation, and tuned.

  Attributes:
    pruned: weights of the masked model, before tuning.
    tuned: likewise, after it.
    channels: how many are pruned.
    curve: on the defender's data.
    metrics: of the tuning, each [steps].
  """

  pruned: Weights
  tuned: Weights
  channels: int
  curve: PruningCurve
  metrics: dict[str, jax.Array]


def compile_by_activation(
  model: Model,
  layer: str,
  batch_size: int,
  mesh: jax.sharding.Mesh,
  tune: Callable,
  drop: float = 0.04,
) -> Callable:
  """Compile fine-pruning by activation.

  Args:
    model: the model.
    layer: the layer to prune.
    batch_size: images at a time, to measure.
    mesh: the devices that a batch is divided over.
    tune: from `tuning.compile_tuning` of `masked(model)`.
    drop: pruning ends when the accuracy on the defender's data has dropped by
      so much, a fraction (`pruning.stopping_points`); tuning is to win it
      back.

  Returns:
    `(key, weights, images u8 [N,H,W,C], labels i32 [N]) ->
    PrunedByActivation`.

  References:
    Liu, Dolan-Gavitt and Garg (2018), section 3.3.
  """
  compute = compile_curve(model, layer, batch_size, mesh)

  def repair(key, weights, images, labels):
    curve = compute(weights, images, labels)
    channels = int(stopping_points(curve.accuracies, (drop,))[0])
    pruned = prune(weights, {layer: curve.masks[channels]})
    tuned, metrics = tune(key, pruned, images, labels)
    return PrunedByActivation(pruned, tuned, channels, curve, metrics)

  return repair


def by_activation(
  defender: Defender, settings: FinePruningSettings
) -> tuple[Repair, ...]:
  """Prune channels until the accuracy has dropped, then tune.

  Args:
    defender: the network and clean images.
    settings: from `fill_defaults`.

  Returns:
    `before`, `pruned` and `repaired`.

  Raises:
    UserError: no such layer, or tuning diverged.
  """
  layer = check_layer(defender.model, defender.image_shape, settings.layer)
  model = masked(defender.model)
  repair = compile_by_activation(
    defender.model,
    layer,
    defender.batch_size(),
    defender.mesh,
    compile_tuning_of(model, defender, settings),
    settings.drop,
  )
  result = repair(
    defender.key, defender.weights, defender.images, defender.labels
  )
  check_finite(result.tuned, "learning_rate")
  unpruned = prune(
    defender.weights, {layer: jnp.ones_like(result.curve.masks[0])}
  )
  details = {
    "layer": layer,
    "channels": result.channels,
    "defender_accuracy": float(result.curve.accuracies[result.channels]),
  }
  logger.info(
    "%d of %d channels of %s pruned",
    result.channels,
    len(result.curve.order),
    layer,
  )
  return (
    Repair("before", model, unpruned, saved=False),
    Repair("pruned", model, result.pruned, details, saved=False),
    Repair("repaired", model, result.tuned, details),
  )
