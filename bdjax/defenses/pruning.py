"""Pruning of channels that clean inputs leave dormant.

References:
  Liu, Dolan-Gavitt and Garg (2018), Fine-Pruning: Defending Against Backdooring
  Attacks on Deep Neural Networks, section 3.1.
"""

import dataclasses
import logging
import pathlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bdjax import batching
from bdjax.defenses.base import Defender, DefenseMethod, Repair, RepairPath
from bdjax.defenses.checks import check_images, parse_shares
from bdjax.defenses.incremental_pruning import predict_prefixes, prefix_masks
from bdjax.models import Model
from bdjax.models.masking import check_layer, layer_output, masked, prune
from bdjax.settings import check, setting

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class PruningSettings:
  """Settings of pruning, and of GoodNet."""

  layer: str | None = setting(
    None, "Layer whose channels are pruned (default: the last)."
  )
  drops: str = setting(
    "0.02,0.04,0.1",
    "Drops of the accuracy on the defender's data at which the pruned network "
    "is kept.",
  )


class PruningCurve(NamedTuple):
  """Channels of a layer pruned one by one, on the defender's data.

  Attributes:
    order: int [C], the channels as they are pruned.
    masks: float32 [C+1,C], from `prefix_masks`.
    accuracies: float64 [C+1] on the host; entry k with k channels pruned.
  """

  order: jax.Array
  masks: jax.Array
  accuracies: np.ndarray


def mean_activations(
  model: Model, layer: str, batch_size: int, mesh: jax.sharding.Mesh
) -> Callable:
  """Compile the mean activation of every channel of a layer.

  Args:
    model: the model.
    layer: whose output is averaged, after nonlinearity and pooling, over
      images and positions.
    batch_size: images at a time.
    mesh: the devices that a batch is divided over.

  Returns:
    `(weights, images u8 [N,H,W,C]) -> float32 [C]`.

  References:
    Liu, Dolan-Gavitt and Garg (2018), section 3.1.
  """

  def average_positions(weights, key, images):
    del key
    x = layer_output(model, weights, images, layer)
    return x.mean((1, 2), dtype=jnp.float32)

  run = batching.over_images(average_positions, batch_size, mesh)
  key = jax.random.key(0)  # unused
  return lambda weights, images: run(weights, key, images).mean(0)


def pruning_order(activations: jax.Array) -> jax.Array:
  """Sort channels by activation, the lowest first; ties by number.

  Args:
    activations: float [C].

  Returns:
    int [C], a permutation.
  """
  return jnp.argsort(activations)


def compile_curve(
  model: Model, layer: str, batch_size: int, mesh: jax.sharding.Mesh
) -> Callable:
  """Compile pruning by activation, from no channel to all of them.

  Args:
    model: the model.
    layer: whose channels are pruned.
    batch_size: images at a time.
    mesh: the devices that a batch is divided over.

  Returns:
    `(weights, images u8 [N,H,W,C], labels i32 [N]) -> PruningCurve`.
  """
  activations = mean_activations(model, layer, batch_size, mesh)
  predict = batching.over_images(
    predict_prefixes(model, layer), batch_size, mesh
  )

  def curve(weights, images, labels):
    order = pruning_order(activations(weights, images))
    predictions = predict((weights, order), jax.random.key(0), images)
    correct = np.asarray(predictions) == np.asarray(labels)[:, None]
    return PruningCurve(order, prefix_masks(order), correct.mean(0))

  return curve


def stopping_points(
  accuracies: Any, drops: Sequence[float] = (0.02, 0.04, 0.10)
) -> np.ndarray:
  """Return how many channels are pruned when the accuracy has dropped by X.

  The smallest number at which the accuracy on the defender's data lies at
  least X below that of the whole network. Liu et al. (2018), section 3.1, end
  pruning when it falls below a threshold; the network of that moment is kept.
  It costs X or more and never less, as in the published tables of repaired
  networks for X = 2, 4 and 10 points.

  Args:
    accuracies: float [...,P], fractions; entry k with k channels pruned.
    drops: X, fractions.

  Returns:
    int [...,len(drops)]; P - 1 where the accuracy never drops so far.
  """
  accuracies = np.asarray(accuracies, np.float64)
  dropped = accuracies[..., :1] - accuracies
  # 0.94 - 0.92 is below 0.02 in binary; no set has a million images.
  reached = dropped[..., None, :] >= np.asarray(drops)[:, None] - 1e-6
  last = accuracies.shape[-1] - 1
  return np.where(reached.any(-1), reached.argmax(-1), last)


def pruning(
  defender: Defender,
  settings: PruningSettings | None = None,
  directory: pathlib.Path | None = None,
) -> tuple[RepairPath]:
  """Prune a layer's channels, those least active on clean images first.

  A backdoor sits in channels that clean inputs leave dormant. How many go is
  decided by the accuracy on the defender's data alone. It costs two passes
  over the defender's images, and a head for every channel; nothing is trained.

  Args:
    defender: the network and clean images.
    settings: the layer and where to stop; None for the defaults.
    directory: not used.

  Returns:
    The path of all C+1 networks, its points `at_0` and `at_X` for every drop
    X, and the pruned networks `drop-X`.

  Raises:
    UserError: no images, no such layer, or drops that are not shares.

  References:
    Liu, Dolan-Gavitt and Garg (2018), Fine-Pruning: Defending Against
    Backdooring Attacks on Deep Neural Networks, section 3.1.
  """
  del directory
  settings = settings or PruningSettings()
  layer, curve, counts = prune_until(defender, settings)
  model = masked(defender.model)
  repairs = tuple(
    Repair(
      f"drop-{drop}",
      model,
      prune(defender.weights, {layer: curve.masks[count]}),
      {"layer": layer, "channels": count},
    )
    for drop, count in counts.items()
  )
  at_drops = {f"at_{drop}": count for drop, count in counts.items()}
  path = pruning_path(defender, layer, curve, {"at_0": 0, **at_drops})
  return (path._replace(repairs=repairs),)


def prune_until(
  defender: Defender, settings: PruningSettings
) -> tuple[str, PruningCurve, dict[str, int]]:
  """Prune on the defender's data, and find where the accuracy has dropped.

  Args:
    defender: the network and clean images.
    settings: the layer and the drops.

  Returns:
    The layer, its curve, and each drop's text -> channels pruned there.

  Raises:
    UserError: no images, no such layer, or drops that are not shares.
  """
  check(settings)
  check_images(defender)
  drops = parse_shares(settings.drops, "drops")
  model, mesh = defender.model, defender.mesh
  layer = check_layer(model, defender.image_shape, settings.layer)
  compute = compile_curve(model, layer, defender.batch_size(), mesh)
  curve = compute(defender.weights, defender.images, defender.labels)
  counts = stopping_points(curve.accuracies, tuple(drops.values())).tolist()
  counts = dict(zip(drops, counts, strict=True))
  logger.info(
    "channels of %s pruned at each drop (of %d): %s",
    layer,
    len(curve.order),
    ", ".join(f"{drop}: {count}" for drop, count in counts.items()),
  )
  return layer, curve, counts


def pruning_path(
  defender: Defender, layer: str, curve: PruningCurve, points: dict[str, int]
) -> RepairPath:
  """Return the path of all networks along a pruning curve.

  Args:
    defender: the network.
    layer: whose channels are pruned.
    curve: of that layer.
    points: name -> channels pruned.
  """
  return RepairPath(
    name="pruning",
    answer=predict_prefixes(defender.model, layer),
    args=(defender.weights, curve.order),
    points=points,
    axis=f"channels of {layer} pruned, the least active first",
    curves={"accuracy, defender's data": curve.accuracies},
    details={
      "layer": layer,
      "order": np.asarray(curve.order).tolist(),
      "defender_accuracy": curve.accuracies.tolist(),
      "points": points,
    },
  )


METHOD = DefenseMethod(
  "pruning",
  PruningSettings,
  pruning,
  "Liu, Dolan-Gavitt and Garg (2018), Fine-Pruning: Defending Against "
  "Backdooring Attacks on Deep Neural Networks",
)
