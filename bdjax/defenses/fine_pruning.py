"""Fine-pruning: prune, then fine-tune what is left.

Two published forms. By activation (Liu, Dolan-Gavitt and Garg 2018, section
3.3): dormant channels go, then the rest is tuned. By value: the lowest
weights of every convolution go, a little more every round, with an epoch of
tuning at a low learning rate after each.

Pruned stays pruned while tuning: channels by their masks in the forward pass,
weights by a mask on their updates. Every decision reads the defender's data.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bdjax import evaluation
from bdjax.attacks.triggers import Trigger, stamp
from bdjax.defenses import masking, pruning
from bdjax.models import Model, Weights


class ByActivation(NamedTuple):
  """A network pruned by activation, and tuned.

  Attributes:
    pruned: weights of the masked model, before tuning.
    tuned: likewise, after it.
    channels: how many are pruned.
    curve: on the defender's data.
    metrics: of the tuning, each [steps].
  """

  pruned: Weights
  tuned: Weights
  channels: int
  curve: pruning.Curve
  metrics: dict[str, jax.Array]


def make_by_activation(
  model: Model,
  layer: str,
  batch_size: int,
  mesh: jax.sharding.Mesh,
  tune: Callable,
  drop: float = 0.04,
) -> Callable:
  """Compiles fine-pruning by activation (Liu et al. 2018, section 3.3).

  Args:
    model: the model.
    layer: the layer to prune.
    batch_size: images at a time, to measure.
    mesh: where a batch is cut along.
    tune: from `tuning.make_tune` of `pruning.masked(model)`.
    drop: pruning ends when the accuracy on the defender's data has fallen by
      so much, a fraction (`pruning.stops`); tuning is to win it back.

  Returns:
    `(key, weights, images u8 [N,H,W,C], labels i32 [N]) -> ByActivation`.
  """
  make = pruning.make_curve(model, layer, batch_size, mesh)

  def repair(key, weights, images, labels):
    curve = make(weights, images, labels)
    channels = int(pruning.stops(curve.accuracies, (drop,))[0])
    pruned = pruning.prune(weights, {layer: curve.masks[channels]})
    tuned, metrics = tune(key, pruned, images, labels)
    return ByActivation(pruned, tuned, channels, curve, metrics)

  return repair


def value_mask(params: Any, percent: float | jax.Array) -> Any:
  """Which weights stay when the lowest of every convolution are pruned.

  In every convolution's kernel those at or below min + (max - min) * percent
  go. The values are signed: the most negative go first, not the smallest.
  Masks of one network nest: what is pruned at a percentage is pruned at every
  higher one.

  Args:
    params: nested dicts of arrays; a convolution's kernel is what has four
      dimensions.
    percent: share of the kernel's range, in [0,1], as a fraction.

  Returns:
    The tree of the params in bool: False where pruned; biases, normalisation
    and linear layers stay whole.
  """

  def keep(x):
    if x.ndim != 4:
      return jnp.ones(x.shape, bool)
    low, high = x.min(), x.max()
    return x > low + (high - low) * percent

  return jax.tree.map(keep, params)


class Suspect(NamedTuple):
  """A trigger that the defender reversed, and where it leads.

  Attributes:
    trigger: mask [H,W,1] and pattern [H,W,C].
    label: the flagged class.
  """

  trigger: Trigger
  label: int


class Round(NamedTuple):
  """One round of pruning by value.

  Attributes:
    number: from 1.
    percent: of each kernel's range that is pruned so far, a fraction.
    weights: after tuning.
    mask: from `value_mask`.
    pruned: the share of the convolutions' weights that are 0.
    pruned_accuracy: on the defender's data, before tuning.
    accuracy: likewise, after tuning.
    proxy: after tuning, the share of the defender's images of other classes
      that the suspected trigger leads to its label; None without a suspect.
    accepted: the accuracy is not below the floor. The repaired network is
      the last accepted one, without any the one that was delivered.
    last: the loop ends here.
  """

  number: int
  percent: float
  weights: Weights
  mask: Any
  pruned: float
  pruned_accuracy: float
  accuracy: float
  proxy: float | None
  accepted: bool
  last: bool


def make_rounds(
  model: Model,
  batch_size: int,
  mesh: jax.sharding.Mesh,
  tune: Callable,
  *,
  step: float = 0.05,
  drop: float = 0.02,
  proxy_goal: float = 0.05,
) -> Callable:
  """Compiles fine-pruning by value, a generator of rounds.

  The ranges and the values compared are those of the network as delivered, so
  that `percent` means the same in every round and the masks nest. After
  pruning comes one tuning. The loop ends with the first round whose accuracy
  has fallen by more than `drop`, which is not accepted, or with the first
  whose proxy of the attack success rate is low enough. The proxy is measured
  with a trigger that the defender reversed, as by Neural Cleanse; a defender
  without one has no honest proxy and prunes as far as the accuracy allows.

  Args:
    model: the model.
    batch_size: images at a time, to measure.
    mesh: where a batch is cut along.
    tune: from `tuning.make_tune` of the model: one epoch, at a low rate.
    step: by how much `percent` grows in a round, a fraction.
    drop: of the accuracy on the defender's data, a fraction; the floor is so
      much below the network as delivered.
    proxy_goal: the proxy at or below which the backdoor counts as gone.

  Returns:
    `(key, weights, images u8 [N,H,W,C], labels i32 [N], suspect=None,
    start=None) -> iterator of Round`. `start` is the round to go on after, of
    which number, weights and last are read: the rest equals an unbroken run.
  """
  measure = _make_measure(model, batch_size, mesh)
  end = math.ceil(1 / step - 1e-6) - 1  # at 100% nothing would be left

  @jax.jit
  def cut(whole, current, percent):
    mask = value_mask(whole, percent)
    return mask, masking.zero(current, mask)

  def one(key, whole, current, data, suspect, floor, number):
    percent = number * step
    mask, params = cut(whole.params, current.params, percent)
    pruned = Weights(params, current.batch_stats)
    tuned, _ = tune(jax.random.fold_in(key, number), pruned, *data, mask)
    accuracy = measure(tuned, *data)
    proxy = None if suspect is None else measure(tuned, *data, suspect)
    accepted = accuracy >= floor
    gone = proxy is not None and proxy <= proxy_goal
    return Round(
      number=number,
      percent=percent,
      weights=tuned,
      mask=mask,
      pruned=masking.pruned_share(mask),
      pruned_accuracy=measure(pruned, *data),
      accuracy=accuracy,
      proxy=proxy,
      accepted=accepted,
      last=not accepted or gone or number == end,
    )

  def rounds(key, weights, images, labels, suspect=None, start=None):
    data = images, labels
    # The tolerance is for rounding, as in `pruning.stops`.
    floor = measure(weights, *data) - drop - 1e-6
    number, current, last = 0, weights, end == 0
    if start is not None:
      number, current, last = start.number, start.weights, start.last
    while not last:
      number += 1
      done = one(key, weights, current, data, suspect, floor, number)
      current, last = done.weights, done.last
      yield done

  return rounds


def _make_measure(model, batch_size, mesh):
  """Accuracy, or with a suspect how often its trigger leads to its label."""

  def one_batch(args, key, images):
    del key
    weights, trigger = args
    images = jax.vmap(stamp, (None, 0))(trigger, images)
    logits, _ = model.apply(*weights, images, False)
    return logits.argmax(-1).astype(jnp.int32)

  predict = evaluation.over_images(one_batch, batch_size, mesh)

  def measure(weights, images, labels, suspect=None):
    labels = np.asarray(labels)
    counts, wanted = np.ones(labels.shape, bool), labels
    shape = images.shape[1:]
    trigger = Trigger(jnp.zeros((*shape[:2], 1)), jnp.zeros(shape))
    if suspect is not None:
      trigger = suspect.trigger
      counts, wanted = labels != suspect.label, suspect.label
    got = np.asarray(predict((weights, trigger), jax.random.key(0), images))
    return float(np.mean((got == wanted)[counts]))

  return measure
