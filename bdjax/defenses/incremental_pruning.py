"""All networks along a pruning order, for little more than one.

Pruning removes channels c_1, c_2, ... of a layer in turn. Of the last layer's
output F [B,h,w,C] the head's first linear layer makes

    z_k = z_(k-1) - F[:, c_k] W[c_k],

after k channels: a matrix of rank one for each position of F. So all z_0 to
z_C cost one evaluation of that layer, and the rest of the head is evaluated on
each. Here the recurrence runs from its other end, where every channel is
pruned and z_C is the bias: a sum of what is left, without the rounding that
subtracting leaves behind.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from bdjax.models import Model, Weights
from bdjax.models.masking import layer_outputs, mask_channels, require

_CHUNK_BYTES = 2**28  # of z, in float32, on an accelerator


def prefix_masks(order: jax.Array) -> jax.Array:
  """Return the channel masks of all networks along a pruning order.

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
  chunk_size: int,
) -> Any:
  """Evaluate the head with more and more channels of the features pruned.

  Args:
    model: one that has `split_head`.
    weights: its weights.
    features: [B,h,w,C], from `model.features`.
    order: int [C], a permutation: the channels as they are pruned.
    answer: logits f32 [B,K] -> a tree of [B,...].
    chunk_size: channels added in one step; any number gives the same.

  Returns:
    The tree with leading axes [C+1,B]; entry k has the first k pruned.
  """
  linear, rest, of_channel = model.split_head
  total = order.shape[0]
  inputs = jnp.moveaxis(features, -1, 0)[..., None]  # [C,B,h,w,1]

  def summand(channel):
    params = of_channel(weights.params, channel, total)
    return linear(params, weights.batch_stats, inputs[channel])

  def add_chunk(sums, channels):
    summands = jax.vmap(summand)(channels)
    partial_sums = jax.tree.map(
      lambda z, parts: z[None] + jnp.cumsum(parts.astype(z.dtype), 0),
      sums,
      summands,
    )
    answers = jax.vmap(lambda z: answer(rest(*weights, z)))(partial_sums)
    return jax.tree.map(lambda z: z[-1], partial_sums), answers

  biases = linear(*weights, jnp.zeros_like(features[:1]))
  init = jax.tree.map(
    lambda z: jnp.broadcast_to(
      z.astype(jnp.float32), (features.shape[0], *z.shape[1:])
    ),
    biases,
  )
  # The last chunk is filled up with the last channel, cut off again below.
  chunks = -(-total // chunk_size)
  positions = jnp.minimum(jnp.arange(chunks * chunk_size), total - 1)
  steps = order[::-1][positions].reshape(chunks, chunk_size)
  _, answers = jax.lax.scan(add_chunk, init, steps)

  def join(all_pruned, others):
    others = others.reshape(chunks * chunk_size, *others.shape[2:])[:total]
    all_pruned = jnp.broadcast_to(all_pruned[None], (1, *others.shape[1:]))
    return jnp.concatenate([others[::-1], all_pruned])

  return jax.tree.map(join, answer(rest(*weights, biases)), answers)


def _argmax(logits: jax.Array) -> jax.Array:
  """Return `argmax` int32 [B] in two passes that vectorise.

  On CPU, XLA's own takes as long as the rest of a head of 1283 classes.
  """
  labels = jnp.arange(logits.shape[-1], dtype=jnp.int32)
  below = logits < logits.max(-1, keepdims=True)
  return jnp.where(below, labels.size, labels[None]).min(-1)


def default_chunk_size(
  model: Model, weights: Weights, features: jax.Array
) -> int:
  """Return how many channels to add in one step.

  On CPU one: chunks of 2 and 4 were no faster, all at once 2 to 17 times
  slower. Accelerators want few steps, not a short one for each channel.

  Args:
    model: one that has `split_head`.
    weights: its weights.
    features: [B,h,w,C], or their shape and dtype.

  Returns:
    In [1,C].
  """
  if jax.default_backend() == "cpu":
    return 1
  shapes = jax.eval_shape(model.split_head.linear, *weights, features)
  sum_bytes = 4 * sum(z.size for z in jax.tree.leaves(shapes))
  return min(max(1, _CHUNK_BYTES // sum_bytes), features.shape[-1])


def predict_prefixes(model: Model, layer: str) -> Callable:
  """Make the prediction of all networks along a pruning order.

  The layer's output is computed once. For the last layer the recurrence above
  goes on from there. For others, and heads without a linear part, the output
  is masked and put in its own place for every mask: all of the network before
  it is then dead code, which the compiler drops from the loop.

  Args:
    model: the model.
    layer: whose channels are pruned.

  Returns:
    `((weights, order int [C]), key, images f32 [B,H,W,C]) -> int32 [B,C+1]`,
    entry k with the first k channels of the order pruned; the key is not used.
    For `batching.over_images`.
  """

  def predict(args, key, images):
    del key
    weights, order = args
    outputs = layer_outputs(model, weights, images)
    require(layer, outputs)
    output = outputs[layer]
    if layer == list(outputs)[-1] and model.split_head:
      size = default_chunk_size(model, weights, output)
      return over_prefixes(model, weights, output, order, _argmax, size).T

    def predict_masked(mask):
      def replace(name, x):
        return mask_channels(output, mask) if name == layer else x

      return _argmax(model.apply(*weights, images, tap=replace)[0])

    return jax.lax.map(predict_masked, prefix_masks(order)).T

  return predict
