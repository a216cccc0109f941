"""Channels and weights switched off by masks, in any network.

A pruned network is the same network with masks on its channels, or with zeros
for some of its weights. Masks are data: pruning differently compiles nothing.
"""

from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bdjax.errors import UserError
from bdjax.models import Model, Weights, layers
from bdjax.models.base import no_tap


def require(layer: str, names: Iterable[str]) -> None:
  """Refuses a layer that is not among the names.

  Raises:
    UserError: it is not; the line has them all.
  """
  if layer not in names:
    raise UserError(
      f"the model has no layer {layer!r}; take one of {', '.join(names)}"
    )


def check_layer(
  model: Model, image_shape: tuple[int, int, int], layer: str | None = None
) -> str:
  """The layer of a name; without one the last, which the paper prunes.

  Raises:
    UserError: there is none of that name.
  """
  names = list(layers(model, image_shape))
  layer = names[-1] if layer is None else layer
  require(layer, names)
  return layer


def masked(model: Model, channels: dict[str, int] | None = None) -> Model:
  """A model whose channels can be switched off by its parameters.

  Its params are `{"network": params, "masks": {layer: float32 [C]}}`. A
  layer's output is multiplied by its mask before it goes on; layers without a
  mask are left alone. No gradient reaches the masks, and the library's
  optimisers do not decay them, so training leaves them as they are.

  Args:
    model: the model; its batch statistics stay as they were.
    channels: layer -> C, the masks that `init` makes, of ones.

  Returns:
    The model. `apply` raises `UserError` for a mask of an unknown layer.
  """

  def init(key):
    params, batch_stats = model.init(key)
    masks = {layer: jnp.ones(c) for layer, c in (channels or {}).items()}
    return {"network": params, "masks": masks}, batch_stats

  def apply(params, batch_stats, images, train, tap=no_tap):
    masks = jax.lax.stop_gradient(params["masks"])
    seen = []

    def mask_first(layer, x):
      seen.append(layer)
      return tap(layer, mask_channels(x, masks[layer]) if layer in masks else x)

    out = model.apply(params["network"], batch_stats, images, train, mask_first)
    for layer in masks:
      require(layer, seen)
    return out

  def features(params, batch_stats, images):
    out = []

    def keep(layer, x):
      del layer
      out.append(x)
      return x

    apply(params, batch_stats, images, False, keep)
    return out[-1]

  def head(params, batch_stats, x):
    return model.head(params["network"], batch_stats, x)

  return Model(init, apply, features, head)


def mask_channels(x: jax.Array, mask: jax.Array) -> jax.Array:
  """Multiplies activations [...,C] by a mask float32 [C], in their dtype."""
  return x * mask.astype(x.dtype).reshape((1,) * (x.ndim - 1) + (-1,))


def prune(weights: Weights, masks: dict[str, jax.Array]) -> Weights:
  """The weights of a network as those of its masked model.

  Args:
    weights: of the model.
    masks: layer -> float32 [C], 1 or, where pruned, 0.
  """
  return Weights(
    {"network": weights.params, "masks": masks}, weights.batch_stats
  )


def layer_outputs(
  model: Model, weights: Weights, images: jax.Array
) -> dict[str, jax.Array]:
  """What every layer gives, in order; under jit, what is not used is free.

  Args:
    model: the model.
    weights: its weights.
    images: float32 [B,H,W,C] in [0,1].

  Returns:
    Layer -> [B,h,w,c].
  """
  found = {}

  def keep(name, x):
    found[name] = x
    return x

  model.apply(*weights, images, False, keep)
  return found


def layer_output(
  model: Model, weights: Weights, images: jax.Array, layer: str
) -> jax.Array:
  """What a layer gives in a trained network; under jit, what follows is free.

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
  found = layer_outputs(model, weights, images)
  require(layer, found)
  return found[layer]


def zero(params: Any, mask: Any) -> Any:
  """Params with exact zeros where the mask is False."""
  return jax.tree.map(
    lambda x, m: jnp.where(m, x, jnp.zeros_like(x)), params, mask
  )


def pruned_share(mask: Any) -> float:
  """The share of the convolutions' weights that a mask prunes."""
  kernels = [np.asarray(m) for m in jax.tree.leaves(mask) if m.ndim == 4]
  kept = sum(int(m.sum()) for m in kernels)
  return 1.0 - kept / sum(m.size for m in kernels)
