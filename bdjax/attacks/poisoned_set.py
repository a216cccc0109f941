"""Poisoning of a data set with an attack, once, before training.

BadNets, Blended and other attackers of the data alone leave a set in which the
same images are poisoned in every epoch, before augmentation.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bdjax import compiler
from bdjax.attacks.base import Attack, TriggerVariables
from bdjax.attacks.poisoning import choose_targets
from bdjax.batch import COVER, POISONED
from bdjax.batching import to_float, to_uint8
from bdjax.errors import UserError

_CHUNK = 500  # images stamped at a time


class PoisonedSet(NamedTuple):
  """A training set of which some images are poisoned; on the host.

  Attributes:
    images: uint8 [N,H,W,C].
    labels: int32 [N], as training sees them.
    roles: int8 [N], of `bdjax.batch`.
    targets: int32 [N], the target label of poisoned and cover images; -1 of
      clean ones.
  """

  images: np.ndarray
  labels: np.ndarray
  roles: np.ndarray
  targets: np.ndarray


def poison_dataset(
  attack: Attack,
  variables: TriggerVariables,
  key: jax.Array,
  images: np.ndarray,
  labels: np.ndarray,
  rate: float | None,
  class_rate: float | None = None,
) -> PoisonedSet:
  """Poison exactly round(rate * N) eligible images of a data set.

  The choice, the targets and the triggers depend on the key alone. Triggered
  images are rounded to uint8.

  Args:
    attack: the attack.
    variables: its own.
    key: a random key.
    images: uint8 [N,H,W,C].
    labels: int32 [N], the true ones.
    rate: share of all images, in [0,1].
    class_rate: instead, share of the images that carry a target label.

  Raises:
    UserError: fewer images may be poisoned, or be covers, than the rates ask.
  """
  total = len(labels)
  drawn = jax.device_get(_draw(attack, key, jnp.asarray(labels)))
  count = _number_poisoned(attack, labels, drawn.eligible, rate, class_rate)
  order = drawn.order
  rows = np.sort(order[drawn.eligible[order]][:count])
  free = drawn.coverable.copy()
  free[rows] = False
  num_covers = 0
  if attack.cover is not None and count:
    num_covers = round(attack.cover_rate * total)
    if num_covers > free.sum():
      raise UserError(
        f"cover_rate must be at most {free.sum() / total:.4g}: {num_covers} "
        f"covers are asked for, and {free.sum()} images are left for them"
      )
  cover_rows = np.sort(order[free[order]][:num_covers])
  out = PoisonedSet(
    images.copy(),
    labels.astype(np.int32),
    np.zeros(total, np.int8),
    np.full(total, -1, np.int32),
  )
  targets = np.asarray(attack.targets)[drawn.index]
  out.labels[rows] = targets[rows]
  for chosen, role, apply, apply_key in (
    (rows, POISONED, attack.apply, drawn.keys[0]),
    (cover_rows, COVER, attack.cover, drawn.keys[1]),
  ):
    out.roles[chosen] = role
    out.targets[chosen] = targets[chosen]
    if len(chosen):
      out.images[chosen] = stamp_images(
        apply, variables, apply_key, images[chosen], drawn.index[chosen]
      )
  return out


class _Drawn(NamedTuple):
  """What is drawn for the images of a set, on the host.

  Attributes:
    order: int32 [N], a permutation.
    eligible: bool [N], may be poisoned.
    coverable: bool [N], may be a cover.
    index: int32 [N] into the targets.
    keys: of the triggers of poisoned images and of covers.
  """

  order: np.ndarray
  eligible: np.ndarray
  coverable: np.ndarray
  index: np.ndarray
  keys: tuple[jax.Array, jax.Array]


def _draw(attack: Attack, key: jax.Array, labels: jax.Array) -> _Drawn:
  """Draw an order of the images and a target for each, as one program."""

  @compiler.jit
  def draw(key, labels):
    keys = jax.random.split(key, 4)
    poisonable = attack.poisonable(labels)
    return (
      jax.random.permutation(keys[0], labels.shape[0]),
      poisonable.any(1),
      attack.coverable(labels),
      choose_targets(keys[1], poisonable)[0],
      (keys[2], keys[3]),
    )

  return _Drawn(*draw(key, labels))


def _number_poisoned(attack, labels, eligible, rate, class_rate) -> int:
  """Return how many images the rates ask for, if there are so many."""
  total, available = len(labels), int(eligible.sum())
  if class_rate is not None:
    members = int(np.isin(labels, np.asarray(attack.targets)).sum())
    name, value, whole = "class_rate", class_rate, members
  else:
    name, value, whole = "poison_rate", rate, total
  count = round(value * whole)
  if count > available:
    raise UserError(
      f"{name} must be at most {available / whole:.4g} (got {value:g}): it "
      f"asks for {count} images, and {available} may be poisoned"
    )
  return count


def stamp_images(
  apply: Callable,
  variables: TriggerVariables,
  key: jax.Array,
  images: np.ndarray,
  index: np.ndarray,
) -> np.ndarray:
  """Trigger stored images, a chunk at a time.

  Args:
    apply: `Attack.apply`, `Attack.test_apply` or `Attack.cover`.
    variables: of the attack.
    key: a random key.
    images: uint8 [N,H,W,C].
    index: int32 [N] into the targets.

  Returns:
    uint8 [N,H,W,C], rounded.
  """

  @compiler.jit
  def stamp_chunk(variables, key, images, index):
    return to_uint8(apply(variables, key, to_float(images), index))

  size = min(_CHUNK, len(images))
  chunks = []
  for number, start in enumerate(range(0, len(images), size)):
    # The last chunk is filled up, so that one program serves all.
    rows = np.minimum(np.arange(start, start + size), len(images) - 1)
    chunk_key = jax.random.fold_in(key, number)
    chunks.append(
      np.asarray(stamp_chunk(variables, chunk_key, images[rows], index[rows]))
    )
  return np.concatenate(chunks)[: len(images)]
