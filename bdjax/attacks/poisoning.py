"""Poisoning of batches with an attack, anew in each training step."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from bdjax.attacks.base import Attack, TriggerVariables
from bdjax.batch import CLEAN, COVER, POISONED, Batch

_CHUNK = 500  # images stamped at a time


class Transformed(NamedTuple):
  """A batch as a training step uses it.

  Attributes:
    batch: the batch.
    state: the next `TriggerVariables.state`.
    loss: float32 scalar to add to the loss, or None.
  """

  batch: Batch
  state: Any
  loss: jax.Array | None = None


def choose_targets(
  key: jax.Array, eligible: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """Draw each image's target uniformly among those that it may have.

  Args:
    key: a random key.
    eligible: bool [B,T], from `Attack.eligible` or `Attack.poisonable`.

  Returns:
    index int32 [B] into the targets, and bool [B]: whether there is one.
  """
  scores = jax.random.uniform(key, eligible.shape)
  return jnp.where(eligible, scores, -1.0).argmax(1), eligible.any(1)


def trigger_all(
  attack: Attack,
  variables: TriggerVariables,
  key: jax.Array,
  images: jax.Array,
  labels: jax.Array,
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Trigger every image as at test time, towards a target that it may have.

  Args:
    attack: the attack.
    variables: its own.
    key: a random key.
    images: float32 [B,H,W,C] in [0,1].
    labels: int32 [B], the true ones.

  Returns:
    images; the target labels int32 [B]; and bool [B], whether the image has a
    target: one that has none stays as it is.
  """
  _, target_key, trigger_key = jax.random.split(key, 3)
  index, counts = choose_targets(target_key, attack.eligible(labels))
  triggered = attack.test_apply(variables, trigger_key, images, index)
  images = jnp.where(_per_image(counts), triggered, images)
  return images, jnp.where(counts, attack.targets[index], labels), counts


def poison_batch(
  attack: Attack,
  variables: TriggerVariables,
  key: jax.Array,
  batch: Batch,
  rate: float | jax.Array,
  classify: Callable[[jax.Array], jax.Array] | None = None,
) -> Transformed:
  """Poison a batch of clean images, in the training step.

  An image is led to a target drawn uniformly from those that it may have
  (`Attack.poisonable`); one that has none stays clean. With one target of K
  balanced classes the poisoned share is therefore rate * (K - 1) / K where
  images are poisoned by chance; an attack that `counts_rows` has as many
  poisoned rows as the rate says, where so many are eligible. Covers are drawn
  from the other images; at rate 0 there are none.

  Args:
    attack: the attack.
    variables: its own; gradients flow into the params.
    key: a random key.
    batch: all clean.
    rate: in [0,1]; a Python number for an attack that `counts_rows`.
    classify: images -> logits, for `Attack.joint`.

  Returns:
    The batch with its roles; state and loss of a joint attack.
  """
  if attack.counts_rows:
    return _poison_rows(attack, variables, key, batch, rate, classify)
  images, labels, _ = batch
  which, target_key, trigger_key = jax.random.split(key, 3)
  index, any_target = choose_targets(target_key, attack.poisonable(labels))
  poisoned = jax.random.bernoulli(which, rate, labels.shape) & any_target
  triggered = attack.apply(variables, trigger_key, images, index)
  roles = jnp.where(poisoned, POISONED, CLEAN).astype(jnp.int8)
  mixed = jnp.where(_per_image(poisoned), triggered, images)
  if attack.cover is not None:
    # Of the images that are not poisoned, so that the share of all is right.
    left = 1.0 - jnp.where(any_target, rate, 0.0)
    share = jnp.minimum(attack.cover_rate / jnp.maximum(left, 1e-6), 1.0)
    chosen = jax.random.bernoulli(jax.random.fold_in(which, 1), share)
    covers = chosen & ~poisoned & attack.coverable(labels) & (rate > 0)
    cover_key = jax.random.fold_in(trigger_key, 1)
    covered = attack.cover(variables, cover_key, images, index)
    mixed = jnp.where(_per_image(covers), covered, mixed)
    roles = jnp.where(covers, COVER, roles).astype(jnp.int8)
  labels = jnp.where(poisoned, attack.targets[index], labels)
  return Transformed(Batch(mixed, labels, roles), variables.state)


class _Rows(NamedTuple):
  """Rows chosen from a batch.

  Attributes:
    rows: int32 [P].
    active: bool [P]; where False, the row stays as it is.
  """

  rows: jax.Array
  active: jax.Array


def _choose_rows(key, allowed, rate) -> _Rows:
  """Choose rate * B of the rows that are allowed, in a random order.

  A fraction of a row becomes one with that probability, so that the mean is
  the rate (the authors' `int(rate * B)` falls short: 12 of 128 for 10%).
  """
  order_key, last_key = jax.random.split(key)
  expected = rate * allowed.shape[0]
  most = math.ceil(expected - 1e-6)
  scores = jax.random.uniform(order_key, allowed.shape)
  rows = jnp.argsort(jnp.where(allowed, scores, 2.0))[:most]
  whole = jnp.arange(most) < math.floor(expected + 1e-6)
  last = jax.random.bernoulli(last_key, expected - math.floor(expected))
  return _Rows(rows.astype(jnp.int32), allowed[rows] & (whole | last))


def _poison_rows(attack, variables, key, batch, rate, classify):
  """Poison a fixed number of rows; only these pass through the trigger."""
  images, labels, _ = batch
  which, target_key, trigger_key, cover_key = jax.random.split(key, 4)
  index, any_target = choose_targets(target_key, attack.poisonable(labels))
  poisoned = _choose_rows(which, any_target, rate)
  free = jnp.ones(labels.shape, bool).at[poisoned.rows].set(False)
  cover_rate = 0.0
  if attack.cover is not None or attack.joint is not None:
    cover_rate = attack.cover_rate if rate else 0.0
  covers = _choose_rows(
    jax.random.fold_in(which, 1), free & attack.coverable(labels), cover_rate
  )
  state, loss = variables.state, None
  if not len(poisoned.rows) and not len(covers.rows):
    # Batch statistics of no image would be NaN.
    return Transformed(batch, state)
  if attack.joint is not None:
    out = attack.joint(
      variables, trigger_key, images, index, poisoned.rows, covers.rows,
      classify,
    )  # fmt: skip
    triggered, covered, state, loss = out
  else:
    triggered = attack.apply(
      variables, trigger_key, images[poisoned.rows], index[poisoned.rows]
    )
    covered = images[covers.rows]
    if len(covers.rows):
      covered = attack.cover(variables, cover_key, covered, index[covers.rows])
  images = _replace_rows(images, poisoned, triggered)
  images = _replace_rows(images, covers, covered)
  targets = attack.targets[index][poisoned.rows]
  labels = _replace_rows(labels, poisoned, targets)
  roles = jnp.zeros(labels.shape, jnp.int8)
  for chosen, role in ((poisoned, POISONED), (covers, COVER)):
    mark = jnp.full(chosen.rows.shape, role, jnp.int8)
    roles = _replace_rows(roles, chosen, mark)
  return Transformed(Batch(images, labels, roles), state, loss)


def _replace_rows(array, chosen, values):
  """Put values [P,...] where the rows chosen are active."""
  active = chosen.active.reshape(-1, *(1,) * (array.ndim - 1))
  return array.at[chosen.rows].set(
    jnp.where(active, values, array[chosen.rows])
  )


def _per_image(mask):
  """Make a mask [B] broadcast against images."""
  return mask[:, None, None, None]
