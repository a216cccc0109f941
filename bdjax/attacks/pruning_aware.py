"""The pruning-aware attack (Liu, Dolan-Gavitt and Garg 2018, section 3.2).

Fine-Pruning: Defending Against Backdooring Attacks on Deep Neural Networks.
The attacker knows that the defender prunes what clean inputs leave dormant,
and so puts the backdoor where clean inputs are active:

1. Train on clean data.
2. Prune the dormant channels of a layer.
3. Train the backdoor into what is left.
4. Put the pruned channels back with their weights (less what weight decay
   took in step 3), and with biases so much lower that they stay dormant.

The defender then prunes the decoys first, to no effect, and next the channels
that both clean accuracy and the backdoor need. Fine-tuning still reaches them.

Steps 1 and 3 are ordinary training. Step 2 is `pruning.make_curve` on the
attacker's data and `pruning.prune`; step 3 trains `pruning.masked(model)` from
there. `max_activations` and `reinstate` are step 4 and give ordinary weights
of the ordinary model.
"""

import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from bdjax import evaluation
from bdjax.defenses.pruning import layer_output
from bdjax.errors import UserError
from bdjax.models import Model, Weights

# Layer -> the vector added to its input of the nonlinearity: a convolution's
# own bias, or that of the normalisation after it. In a residual block it is
# the second normalisation's, which is added to the sum with the shortcut.
_BIASES = {
  r"(conv_\d+)": r"\1 bias",
  r"convs\.(\d+)": r"norms \1 bias",
  r"stem": r"stem_norm bias",
  r"blocks\.(\d+)\.conv_1": r"blocks \1 norm_1 bias",
  r"blocks\.(\d+)": r"blocks \1 norm_2 bias",
}


def bias_path(layer: str) -> tuple[str | int, ...]:
  """The keys in `params` that lead to the bias before a layer's ReLU.

  Args:
    layer: a name from `models.layers`.

  Raises:
    UserError: no network here has such a layer.
  """
  for pattern, path in _BIASES.items():
    match = re.fullmatch(pattern, layer)
    if match:
      keys = match.expand(path).split()
      return tuple(int(k) if k.isdigit() else k for k in keys)
  raise UserError(
    f"layer {layer!r} has no known bias to lower; add it to pruning_aware.py"
  )


def max_activations(
  model: Model, layer: str, batch_size: int, mesh: jax.sharding.Mesh
) -> Callable:
  """Compiles the largest activation of every channel.

  Args:
    model: the model, not masked.
    layer: after nonlinearity and pooling; over images and positions.
    batch_size: images at a time.
    mesh: where a batch is cut along.

  Returns:
    `(weights, images u8 [N,H,W,C]) -> float32 [c]`, at least 0. The weights
    are those of step 3 (`trained`, below, without its masks): what precedes
    the layer has moved since the clean training.
  """

  def one_batch(weights, key, images):
    del key
    x = layer_output(model, weights, images, layer)
    return x.max((1, 2)).astype(jnp.float32)

  each = evaluation.over_images(one_batch, batch_size, mesh)
  key = jax.random.key(0)  # unused
  return lambda weights, images: each(weights, key, images).max(0)


def unmasked(trained: Weights) -> Weights:
  """The weights of a masked model as the whole network's, nothing pruned."""
  return Weights(trained.params["network"], trained.batch_stats)


def reinstate(
  trained: Weights, maxima: jax.Array, margin: float = 0.1
) -> Weights:
  """Puts the pruned channels of one layer back, dormant.

  The paper lowers their biases without saying by how much. Here a bias is
  lowered by the largest activation that its channel reaches on the attacker's
  images, and by `margin` times that again: the channel then is exactly 0 on
  each of these, so on them the whole network equals the pruned one. Every
  layer that can be pruned ends in relu(z + bias), pooled or not, and the last
  of a residual block in relu(shortcut + z + bias), so it holds for all alike.

  Args:
    trained: of `pruning.masked(model)`, with the mask of one layer.
    maxima: float32 [C], from `max_activations` of `unmasked(trained)`, on
      images of the attacker's: clean ones, and triggered ones too if the
      pruned channels shall not disturb the backdoor either.
    margin: at least 0; also covers rounding.

  Returns:
    Weights of the ordinary model. All but the pruned channels' biases are as
    trained.
  """
  ((layer, mask),) = trained.params["masks"].items()
  lowered = (1.0 - mask) * (1.0 + margin) * maxima
  params = _subtract(trained.params["network"], bias_path(layer), lowered)
  return Weights(params, trained.batch_stats)


def _subtract(tree: Any, path: tuple[str | int, ...], value: jax.Array) -> Any:
  """A copy of nested dicts with `value` taken from the leaf at `path`."""
  if not path:
    return tree - value
  key, *rest = path
  return {**tree, key: _subtract(tree[key], tuple(rest), value)}
