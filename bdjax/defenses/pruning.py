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
  mask_channels,
  masked,
  prune,
)
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


def prefix_masks(order: jax.Array) -> jax.Array:
  """All the networks that pruning passes through.

  Args:
    order: int [C], a permutation.

  Returns:
    float32 [C+1,C]; row k is 0 for the first k channels of the order.
  """
  rank = jnp.argsort(order)  # of each channel in the order
  count = jnp.arange(order.shape[0] + 1, dtype=rank.dtype)
  return (rank[None, :] >= count[:, None]).astype(jnp.float32)


def predict_prefixes(model: Model, layer: str) -> Callable:
  """Predictions under many masks for one pass through what precedes them.

  The layer's output is computed once, and then masked and put in its own
  place for every mask: all of the network before it is then dead code, which
  the compiler drops from the loop. For the last layer only the head runs
  again. For `evaluation.over_images` and `over_triggered`.

  Args:
    model: the model.
    layer: whose output is masked.

  Returns:
    `((weights, masks f32 [P,c]), key, images f32 [B,H,W,C]) -> int32 [B,P]`;
    the key is not used.
  """

  def predict(args, key, images):
    del key
    weights, masks = args
    output = layer_output(model, weights, images, layer)

    def under(mask):
      def replace(name, x):
        return mask_channels(output, mask) if name == layer else x

      logits, _ = model.apply(*weights, images, False, replace)
      return logits.argmax(-1).astype(jnp.int32)

    return jax.lax.map(under, masks).T

  return predict


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
    masks = prefix_masks(channels)
    predictions = predict((weights, masks), jax.random.key(0), images)
    hits = np.asarray(predictions) == np.asarray(labels)[:, None]
    return Curve(channels, masks, hits.mean(0))

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
