"""All the networks that pruning passes through, for little more than one.

Pruning takes channels c_1, c_2, ... of a layer in turn. Of the last layer's
output F [B,h,w,C] the head's first linear layer makes

    z_k = z_(k-1) - F[:, c_k] W[c_k],

after k channels: a matrix of rank one for each position of F. So all z_0 to
z_C cost one evaluation of that layer, and what follows it is evaluated on
each. Here the recurrence runs from its other end, where every channel is
pruned and z_C is the bias: a sum of what is left, without the rounding that
taking away leaves behind.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from bdjax.defenses.masking import layer_outputs, mask_channels, require
from bdjax.models import Model, Weights

_CHUNK_BYTES = 2**28  # of z, in float32, on an accelerator


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


def over_prefixes(
  model: Model,
  weights: Weights,
  features: jax.Array,
  order: jax.Array,
  answer: Callable[[jax.Array], Any],
  at_once: int,
) -> Any:
  """What the head says with ever more channels of the features pruned.

  Args:
    model: one that has `head_in_two`.
    weights: its weights.
    features: [B,h,w,C], from `model.features`.
    order: int [C], a permutation: the channels as they are pruned.
    answer: logits f32 [B,K] -> a tree of [B,...].
    at_once: channels that are added in one go; any number gives the same.

  Returns:
    The tree with leading axes [C+1,B]; entry k has the first k pruned.
  """
  enter, leave, of_channel = model.head_in_two
  total = order.shape[0]
  channels = jnp.moveaxis(features, -1, 0)[..., None]  # [C,B,h,w,1]

  def added_by(channel):
    params = of_channel(weights.params, channel, total)
    return enter(params, weights.batch_stats, channels[channel])

  def chunk(sums, some):
    parts = jax.vmap(added_by)(some)
    all_sums = jax.tree.map(
      lambda z, part: z[None] + jnp.cumsum(part.astype(z.dtype), 0),
      sums,
      parts,
    )
    answers = jax.vmap(lambda z: answer(leave(*weights, z)))(all_sums)
    return jax.tree.map(lambda z: z[-1], all_sums), answers

  none = enter(*weights, jnp.zeros_like(features[:1]))  # the biases
  start = jax.tree.map(
    lambda z: jnp.broadcast_to(
      z.astype(jnp.float32), (features.shape[0], *z.shape[1:])
    ),
    none,
  )
  # The last chunk is filled up with the last channel, cut off again below.
  chunks = -(-total // at_once)
  places = jnp.minimum(jnp.arange(chunks * at_once), total - 1)
  steps = order[::-1][places].reshape(chunks, at_once)
  _, answers = jax.lax.scan(chunk, start, steps)

  def whole(first, rest):
    rest = rest.reshape(chunks * at_once, *rest.shape[2:])[:total]
    first = jnp.broadcast_to(first[None], (1, *rest.shape[1:]))
    return jnp.concatenate([rest[::-1], first])

  return jax.tree.map(whole, answer(leave(*weights, none)), answers)


def _predictions(logits: jax.Array) -> jax.Array:
  """`argmax` int32 [B] in two passes that vectorise.

  On CPU, XLA's own takes as long as the rest of a head of 1283 classes.
  """
  places = jnp.arange(logits.shape[-1], dtype=jnp.int32)
  below = logits < logits.max(-1, keepdims=True)
  return jnp.where(below, places.size, places[None]).min(-1)


def _channels_at_once(model, weights, features) -> int:
  """How many channels are added in one go.

  On CPU one: chunks of 2 and 4 were no faster, all at once 2 to 17 times
  slower. Accelerators want few steps, not a short one for each channel.
  """
  if jax.default_backend() == "cpu":
    return 1
  shapes = jax.eval_shape(model.head_in_two.enter, *weights, features)
  sums = 4 * sum(z.size for z in jax.tree.leaves(shapes))
  return min(max(1, _CHUNK_BYTES // sums), features.shape[-1])


def predict_prefixes(model: Model, layer: str) -> Callable:
  """Predictions of all the networks for one pass through what they share.

  The layer's output is computed once. For the last layer the recurrence above
  goes on from there. For others, and heads that do not come in two parts, the
  output is masked and put in its own place for every mask: all of the network
  before it is then dead code, which the compiler drops from the loop. For
  `evaluation.over_images` and `over_triggered`.

  Args:
    model: the model.
    layer: whose channels are pruned.

  Returns:
    `((weights, order int [C]), key, images f32 [B,H,W,C]) -> int32 [B,C+1]`,
    entry k with the first k channels of the order pruned; the key is not used.
  """

  def predict(args, key, images):
    del key
    weights, order = args
    outputs = layer_outputs(model, weights, images)
    require(layer, outputs)
    output = outputs[layer]
    if layer == list(outputs)[-1] and model.head_in_two:
      at_once = _channels_at_once(model, weights, output)
      out = over_prefixes(model, weights, output, order, _predictions, at_once)
      return out.T

    def under(mask):
      def replace(name, x):
        return mask_channels(output, mask) if name == layer else x

      return _predictions(model.apply(*weights, images, False, replace)[0])

    return jax.lax.map(under, prefix_masks(order)).T

  return predict
