"""Classification heads in two parts, the first of them a sum over channels."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp


class SplitHead(NamedTuple):
  """A head as `rest(linear(features))`, where channels at first only add up.

  `linear` is a sum over channels: it may pool each by itself, with a pooling
  that keeps zeros zero, and then is linear. What a channel adds does not
  depend on the others, and comes from its own weights alone.

  Attributes:
    linear: `(params, batch_stats, features) -> sums`, a tree of [B,...].
    rest: `(params, batch_stats, sums) -> logits` float32 [B,K].
    of_channel: `(params, channel int32 scalar, C) -> params`, with which
      `linear` of that channel alone, [B,h,w,1], is what it adds to the sums.
      Biases are 0 there; they are what `linear` of zeros gives.
  """

  linear: Callable[..., Any]
  rest: Callable[..., jax.Array]
  of_channel: Callable[..., dict[str, Any]]


def make_split_head(merge: Callable, inputs: tuple[str, ...]) -> SplitHead:
  """Make the split head of a network.

  Args:
    merge: `(params, batch_stats) -> classifier.Classifier`.
    inputs: its `head_inputs`, the layers of `head_linear`.
  """

  def linear(params, batch_stats, x):
    return merge(params, batch_stats).head_linear(x)

  def rest(params, batch_stats, sums):
    return merge(params, batch_stats).head_rest(sums).astype(jnp.float32)

  def of_channel(params, channel, channels):
    rows = {
      layer: _of_channel(params[layer], channel, channels) for layer in inputs
    }
    return params | rows

  return SplitHead(linear, rest, of_channel)


def _of_channel(layer: dict[str, Any], channel: jax.Array, channels: int):
  """Return a layer's part that reads one channel of its input; no bias."""
  *window, rows, units = layer["kernel"].shape
  # Of a flattened input every `channels`-th row; of others the one row.
  kernel = layer["kernel"].reshape(*window, rows // channels, channels, units)
  part = {name: jnp.zeros_like(x) for name, x in layer.items()}
  return part | {"kernel": kernel[..., channel, :]}
