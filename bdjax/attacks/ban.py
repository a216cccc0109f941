"""Backdoor Generating Network, BaN (Salem et al. 2022, section 3.2)."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bdjax.attacks.poison import Attack
from bdjax.models.generator import trigger_mlp

# Root mean square difference of two U[0,1] draws.
_UNIFORM_RMS = 6.0**-0.5


def sameness(
  attack: Attack,
  params: Any,
  key: jax.Array,
  diversity: float,
  across_labels: bool = False,
  pairs: int = 32,
) -> jax.Array:
  """How far a generator's triggers are from the wanted diversity.

  The paper's loss alone has its optimum at one fixed trigger for each label,
  a static backdoor: minimised to the end it gets there (README, "Are the
  triggers dynamic?"). Adding this, weighted, keeps the backdoor dynamic. The
  idea is the diversity loss of Nguyen and Tran 2020 (Input-Aware Dynamic
  Backdoor Attack, equation 5); that one is a ratio without an upper bound,
  this one ends at 0 once the triggers differ as much as wanted.

  Args:
    attack: the attack.
    params: of its generator.
    key: a random key.
    diversity: the wanted root mean square difference of two draws for the
      same label, in units of that of two U[0,1] draws, sqrt(1/6); in [0,1].
    across_labels: adds the same for two labels at equal noise, which shall
      differ like U[0,1] draws. A conditional generator needs it to start
      from: before the classifier tells labels apart by the trigger, nothing
      else in the loss does.
    pairs: how many pairs of triggers are compared.

  Returns:
    float32 scalar: the difference lacking, averaged over pairs; `diversity`
    for a fixed trigger (1 more with `across_labels`), at least 0.
  """
  index_key, one, two = jax.random.split(key, 3)
  num = attack.targets.shape[0]
  index = jax.random.randint(index_key, (pairs,), 0, num)
  patches = attack.patches(params, one, index)
  again = attack.patches(params, two, index)
  lacking = _lacking(patches - again, diversity)
  if across_labels and num > 1:
    other = attack.patches(params, one, (index + 1) % num)
    lacking += _lacking(patches - other, 1.0)
  return lacking


def _lacking(difference, wanted):
  mean_square = jnp.square(difference).mean((1, 2, 3))
  # The root's gradient is infinite at 0, where a collapsed generator is.
  rms = jnp.sqrt(mean_square + 1e-8)
  return jnp.maximum(wanted - rms / _UNIFORM_RMS, 0.0).mean()


def ban(
  targets: tuple[int, ...],
  boxes: np.ndarray,
  size: int,
  channels: int,
  noise_dim: int = 100,
  width: int = 64,
) -> Attack:
  """Triggers that a network generates from noise, trained with the classifier.

  Salem et al. 2022, section 3.2: z ~ U[0,1]^d goes through the generator to a
  trigger; classifier and generator minimise the clean and the backdoor loss
  together. With several targets, the label is named by the region (section
  3.2, multi-target), as in Random Backdoor.

  Where the paper leaves a choice: the generator is the released code's
  (`models/generator.py`); both networks are updated from one backward pass of
  the same loss, so the updates are simultaneous, not alternating. The
  experiments add `sameness` to the paper's loss, with `--diversity` above 0.

  Args:
    targets: target labels.
    boxes: int32 [T,L,4], the places of each target.
    size: side of the trigger in pixels.
    channels: of the images.
    noise_dim: d, at least 1.
    width: of the generator.

  Returns:
    The attack.
  """
  return generated(targets, boxes, size, channels, noise_dim, width, False)


def generated(
  targets: tuple[int, ...],
  boxes: np.ndarray,
  size: int,
  channels: int,
  noise_dim: int,
  width: int,
  conditional: bool,
) -> Attack:
  """What `ban` and `cban` have in common.

  Args as theirs, and `conditional`: the generator takes the label, one-hot.
  """
  num = len(targets)
  generator = trigger_mlp(
    noise_dim=noise_dim,
    num_labels=num if conditional else 0,
    size=size,
    channels=channels,
    width=width,
  )

  def patches(params, key, index):
    noise = jax.random.uniform(key, (index.shape[0], noise_dim))
    condition = jax.nn.one_hot(index, num) if conditional else None
    return generator.apply(params, noise, condition)

  return Attack(
    targets=jnp.asarray(targets, jnp.int32),
    boxes=jnp.asarray(boxes, jnp.int32),
    init=generator.init,
    patches=patches,
    trigger_size=size,
  )
