"""Pruning of dormant channels (Liu, Dolan-Gavitt and Garg 2018).

Fine-Pruning: Defending Against Backdooring Attacks on Deep Neural Networks,
section 3.1: a backdoor sits in channels that clean inputs leave dormant, so
the defender removes channels in the order of their mean activation on clean
data, the lowest first.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bdjax import evaluation
from bdjax.defenses.masking import (
  check_layer,
  layer_output,
  masked,
  prune,
)
from bdjax.defenses.prefixes import predict_prefixes, prefix_masks
from bdjax.models import Model

__all__ = [
  "Curve",
  "check_layer",
  "layer_output",
  "make_curve",
  "masked",
  "mean_activations",
  "order",
  "predict_prefixes",
  "prefix_masks",
  "prune",
  "stops",
]


def mean_activations(
  model: Model, layer: str, batch_size: int, mesh: jax.sharding.Mesh
) -> Callable:
  """Compiles the mean activation of every channel (Liu et al. 2018, 3.1).

  Args:
    model: the model.
    layer: whose output is averaged, after nonlinearity and pooling, over
      images and positions.
    batch_size: images at a time.
    mesh: where a batch is cut along.

  Returns:
    `(weights, images u8 [N,H,W,C]) -> float32 [c]`.
  """

  def one_batch(weights, key, images):
    del key
    x = layer_output(model, weights, images, layer)
    return x.mean((1, 2), dtype=jnp.float32)

  each = evaluation.over_images(one_batch, batch_size, mesh)
  key = jax.random.key(0)  # unused
  return lambda weights, images: each(weights, key, images).mean(0)


def order(activations: jax.Array) -> jax.Array:
  """Channels int [C] by activation [C], the lowest first; ties by number."""
  return jnp.argsort(activations)


class Curve(NamedTuple):
  """What pruning channel by channel does, on the defender's data.

  Attributes:
    order: int [C], the channels as they are pruned.
    masks: float32 [C+1,C], from `prefix_masks`.
    accuracies: float64 [C+1] on the host, with so many channels pruned.
  """

  order: jax.Array
  masks: jax.Array
  accuracies: np.ndarray


def make_curve(
  model: Model, layer: str, batch_size: int, mesh: jax.sharding.Mesh
) -> Callable:
  """Compiles pruning by activation, from no channel to all of them.

  Returns:
    `(weights, images u8 [N,H,W,C], labels i32 [N]) -> Curve`.
  """
  activations = mean_activations(model, layer, batch_size, mesh)
  predict = evaluation.over_images(
    predict_prefixes(model, layer), batch_size, mesh
  )

  def curve(weights, images, labels):
    channels = order(activations(weights, images))
    predictions = predict((weights, channels), jax.random.key(0), images)
    hits = np.asarray(predictions) == np.asarray(labels)[:, None]
    return Curve(channels, prefix_masks(channels), hits.mean(0))

  return curve


def stops(
  accuracies: Any, drops: tuple[float, ...] = (0.02, 0.04, 0.10)
) -> np.ndarray:
  """How many channels are pruned when the accuracy has fallen by X.

  The smallest number at which the accuracy on the defender's data lies at
  least X below that of the whole network: pruning ends when it falls below a
  threshold (Liu et al. 2018, 3.1), and the network of that moment is kept. It
  costs X or more and never less, as in the published tables of repaired
  networks for X = 2, 4 and 10 points.

  Args:
    accuracies: float [...,P], fractions; entry k with k channels pruned.
    drops: X, fractions.

  Returns:
    int [...,len(drops)]; P - 1 where the accuracy never falls so far.
  """
  accuracies = np.asarray(accuracies, np.float64)
  fallen = accuracies[..., :1] - accuracies
  # 0.94 - 0.92 is below 0.02 in binary; no set has a million images.
  reached = fallen[..., None, :] >= np.asarray(drops)[:, None] - 1e-6
  last = accuracies.shape[-1] - 1
  return np.where(reached.any(-1), reached.argmax(-1), last)
