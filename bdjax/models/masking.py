"""Channels and weights switched off by masks, in any network.

A pruned network is the same network with masks on its channels, or with zeros
for some of its weights. Masks are data: another mask compiles nothing anew.
"""

from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bdjax.errors import UserError
from bdjax.models.base import (
  Model,
  Norm,
  SplitHead,
  Structure,
  Weights,
  no_tap,
)
from bdjax.models.inspection import layers


def require(layer: str, names: Iterable[str]) -> None:
  """Check that a layer is among the names.

  Raises:
    UserError: it is not; the error lists them all.
  """
  names = list(names)
  if layer not in names:
    raise UserError(f"layer must be one of {', '.join(names)} (got {layer!r})")


def check_layer(
  model: Model, image_shape: tuple[int, int, int], layer: str | None = None
) -> str:
  """Check the name of a layer.

  Args:
    model: the model.
    image_shape: (H, W, C).
    layer: the name; None for the last layer.

  Returns:
    The name.

  Raises:
    UserError: the model has no such layer.
  """
  names = list(layers(model, image_shape))
  layer = names[-1] if layer is None else layer
  require(layer, names)
  return layer


def masked(model: Model, channels: dict[str, int] | None = None) -> Model:
  """Make a model whose channels its parameters can switch off.

  Its params are `{"network": params, "masks": {layer: float32 [C]}}`; its batch
  statistics are the model's own. A layer's output is multiplied by its mask;
  layers without a mask are unchanged. No gradient reaches the masks, and the
  library's optimisers do not decay them, so training does not change them.

  Args:
    model: the model.
    channels: layer -> C, the masks that `init` makes, of ones.

  Returns:
    The model. `apply` raises `UserError` for a mask of an unknown layer.
  """

  def init(key):
    params, batch_stats = model.init(key)
    masks = {layer: jnp.ones(c) for layer, c in (channels or {}).items()}
    return {"network": params, "masks": masks}, batch_stats

  def head(params, batch_stats, x):
    return model.head(params["network"], batch_stats, x)

  def prepare(params, batch_stats, images):
    return model.prepare(params["network"], batch_stats, images)

  apply = _masked_apply(model)
  return Model(
    init,
    apply,
    _last_output(apply),
    head,
    prepare,
    model.split_head and _masked_split_head(model.split_head),
    _masked_structure(model.structure),
  )


def _masked_apply(model: Model) -> Callable:
  def apply(params, batch_stats, images, *, train=False, tap=no_tap):
    masks = jax.lax.stop_gradient(params["masks"])
    names = []

    def mask_first(layer, x):
      names.append(layer)
      return tap(layer, mask_channels(x, masks[layer]) if layer in masks else x)

    results = model.apply(
      params["network"], batch_stats, images, train=train, tap=mask_first
    )
    for layer in masks:
      require(layer, names)
    return results

  return apply


def _last_output(apply: Callable) -> Callable:
  """Make `Model.features` of `Model.apply`: the output of its last layer."""

  def features(params, batch_stats, images):
    outputs = []

    def keep(layer, x):
      del layer
      outputs.append(x)
      return x

    apply(params, batch_stats, images, tap=keep)
    return outputs[-1]

  return features


def _masked_split_head(split_head: SplitHead) -> SplitHead:
  def linear(params, batch_stats, x):
    return split_head.linear(params["network"], batch_stats, x)

  def rest(params, batch_stats, sums):
    return split_head.rest(params["network"], batch_stats, sums)

  def of_channel(params, channel, channels):
    network = split_head.of_channel(params["network"], channel, channels)
    return params | {"network": network}

  return SplitHead(linear, rest, of_channel)


def _masked_structure(structure: Structure) -> Structure:
  """Prefix the paths in `params`; batch statistics keep theirs."""
  return Structure(
    structure.stages,
    tuple(
      Norm(("network", *path), conv and ("network", *conv), stats)
      for path, conv, stats in structure.norms
    ),
    {layer: ("network", *path) for layer, path in structure.biases.items()},
  )


def mask_channels(x: jax.Array, mask: jax.Array) -> jax.Array:
  """Multiply activations [...,C] by a mask float32 [C], in their dtype."""
  return x * mask.astype(x.dtype).reshape((1,) * (x.ndim - 1) + (-1,))


def prune(weights: Weights, masks: dict[str, jax.Array]) -> Weights:
  """Turn a network's weights into those of its masked model.

  Args:
    weights: of the model.
    masks: layer -> float32 [C], 1, or 0 for pruned channels.
  """
  return Weights(
    {"network": weights.params, "masks": masks}, weights.batch_stats
  )


def layer_outputs(
  model: Model, weights: Weights, images: jax.Array
) -> dict[str, jax.Array]:
  """Compute the output of every layer; under jit, unused ones are free.

  Args:
    model: the model.
    weights: its weights.
    images: float32 [B,H,W,C] in [0,1].

  Returns:
    Layer -> [B,h,w,c], in forward order.
  """
  outputs = {}

  def keep(layer, x):
    outputs[layer] = x
    return x

  model.apply(*weights, images, tap=keep)
  return outputs


def layer_output(
  model: Model, weights: Weights, images: jax.Array, layer: str
) -> jax.Array:
  """Compute the output of a layer; under jit, the layers after it are free.

  Args:
    model: the model.
    weights: its weights.
    images: float32 [B,H,W,C] in [0,1].
    layer: a name from `models.layers`.

  Returns:
    [B,h,w,c].

  Raises:
    UserError: there is no such layer.
  """
  outputs = layer_outputs(model, weights, images)
  require(layer, outputs)
  return outputs[layer]


def zero(params: Any, mask: Any) -> Any:
  """Set params to exactly zero where the mask is False."""
  return jax.tree.map(
    lambda x, m: jnp.where(m, x, jnp.zeros_like(x)), params, mask
  )


def pruned_share(mask: Any) -> float:
  """Compute the share of the convolutions' weights that a mask prunes."""
  kernels = [np.asarray(m) for m in jax.tree.leaves(mask) if m.ndim == 4]
  kept = sum(int(m.sum()) for m in kernels)
  return 1.0 - kept / sum(m.size for m in kernels)
