"""The pruning-aware attack: a backdoor where pruning does not reach it.

The attacker knows that the defender prunes the channels that clean inputs leave
dormant, and so puts the backdoor where clean inputs are active:

1. Train on clean data.
2. Prune the dormant channels of a layer.
3. Train the backdoor into what is left.
4. Put the pruned channels back with their weights (less what weight decay took
   in step 3), and with biases so much lower that they stay dormant.

The defender then prunes these decoys first, to no effect, and next the channels
that both clean accuracy and the backdoor need. Fine-tuning still reaches them.

Steps 1 and 3 are ordinary training. Step 2 is `pruning.compile_curve` on the
attacker's data and `masking.prune`; step 3 trains `masking.masked(model)` from
there. `max_activations` and `reinstate` are step 4 and give ordinary weights of
the ordinary model. `bdjax.runs.pruning_aware` has all four.

References:
  Liu, Dolan-Gavitt and Garg (2018), Fine-Pruning: Defending Against Backdooring
  Attacks on Deep Neural Networks, section 3.2.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from bdjax import batching
from bdjax.errors import UserError
from bdjax.models import Model, Weights
from bdjax.models.base import Path
from bdjax.models.masking import layer_output


def bias_path(model: Model, layer: str) -> Path:
  """Return the path in `params` of the bias before a layer's ReLU.

  Args:
    model: the model, not masked.
    layer: a name from `models.layers`.

  Raises:
    UserError: no bias can silence a channel of this layer.
  """
  biases = model.structure.biases
  if not biases:
    raise UserError(
      "model must have ReLU layers for the pruning-aware attack: no bias keeps "
      "the channels of this one at exactly 0"
    )
  if layer not in biases:
    raise UserError(
      f"layer must be one of {', '.join(biases)} (got {layer!r}): no bias "
      "silences its channels"
    )
  return biases[layer]


def max_activations(
  model: Model, layer: str, batch_size: int, mesh: jax.sharding.Mesh
) -> Callable:
  """Compile the largest activation of every channel of a layer.

  Args:
    model: the model, not masked.
    layer: after nonlinearity and pooling; over images and positions.
    batch_size: images at a time.
    mesh: the devices that a batch is divided over.

  Returns:
    `(weights, images u8 [N,H,W,C]) -> float32 [c]`, at least 0. The weights
    are those of step 3 (`unmasked(trained)`): what precedes the layer has
    changed since the clean training.
  """

  def over_positions(weights, key, images):
    del key
    x = layer_output(model, weights, images, layer)
    return x.max((1, 2)).astype(jnp.float32)

  run = batching.over_images(over_positions, batch_size, mesh)
  key = jax.random.key(0)  # unused
  return lambda weights, images: run(weights, key, images).max(0)


def unmasked(trained: Weights) -> Weights:
  """Return the weights of a masked model without its masks."""
  return Weights(trained.params["network"], trained.batch_stats)


def reinstate(
  model: Model, trained: Weights, maxima: jax.Array, margin: float = 0.1
) -> Weights:
  """Put the pruned channels of one layer back, dormant.

  The paper lowers their biases without saying by how much. Here a bias is
  lowered by the largest activation that its channel reaches on the attacker's
  images, and by `margin` times that again: the channel then is exactly 0 on
  each of these, so on them the whole network equals the pruned one. Every layer
  with a bias in `Structure.biases` ends in relu(z + bias), pooled or not, and
  the last of a residual block in relu(shortcut + z + bias), so it holds for all
  alike.

  Args:
    model: the model, not masked.
    trained: of `masking.masked(model)`, with the mask of one layer.
    maxima: float32 [C], from `max_activations` of `unmasked(trained)`, on
      images of the attacker's: clean ones, and triggered ones too where the
      pruned channels must not disturb the backdoor either.
    margin: at least 0; also covers rounding.

  Returns:
    Weights of the ordinary model. All but the pruned channels' biases are as
    trained.

  Raises:
    UserError: no bias can silence a channel of this layer.
  """
  ((layer, mask),) = trained.params["masks"].items()
  lowered = (1.0 - mask) * (1.0 + margin) * maxima
  path = bias_path(model, layer)
  params = _subtract(trained.params["network"], path, lowered)
  return Weights(params, trained.batch_stats)


def _subtract(tree: Any, path: Path, value: jax.Array) -> Any:
  """Copy nested dicts with `value` subtracted from the leaf at `path`."""
  if not path:
    return tree - value
  key, *rest = path
  return {**tree, key: _subtract(tree[key], tuple(rest), value)}
