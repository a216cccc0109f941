"""Rounds of pruning weights by value, with tuning after each.

The lowest weights of every convolution are pruned, a little more in every
round, and one tuning at a low learning rate follows. Pruned weights stay at
zero by a mask on their updates. Every decision reads the defender's data.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bdjax import batching
from bdjax.attacks.patches import Trigger, stamp
from bdjax.models import Model, Weights
from bdjax.models.masking import pruned_share, zero


def value_mask(params: Any, percent: float | jax.Array) -> Any:
  """Return which weights stay when the lowest of each convolution are pruned.

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


class SuspectedTrigger(NamedTuple):
  """A reverse-engineered trigger and its target label.

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
    pruned: the fraction of the convolutions' weights that are 0.
    pruned_accuracy: on the defender's data, before tuning.
    accuracy: likewise, after tuning.
    proxy: after tuning, the share of the defender's images of other classes
      that the suspected trigger leads to its label; None without a trigger.
    accepted: the accuracy is not below the floor. The repaired network is the
      last accepted one; where none is, the original.
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


def compile_rounds(
  model: Model,
  batch_size: int,
  mesh: jax.sharding.Mesh,
  tune: Callable,
  *,
  step: float = 0.05,
  drop: float = 0.02,
  proxy_goal: float = 0.05,
) -> Callable:
  """Compile fine-pruning by value, a generator of rounds.

  The ranges and the values compared are those of the original network, so that
  `percent` means the same in every round and the masks nest. After pruning
  comes one tuning. The loop ends with the first round whose accuracy has
  dropped by more than `drop`, which is not accepted, or with the first whose
  proxy of the attack success rate is low enough. The proxy is measured with a
  trigger that the defender reverse-engineered, as by Neural Cleanse; a defender
  without one has no honest proxy and prunes as far as the accuracy allows.

  Args:
    model: the model.
    batch_size: images at a time, to measure.
    mesh: the devices that a batch is divided over.
    tune: from `tuning.compile_tuning` of the model: one epoch, at a low rate.
    step: by how much `percent` grows in a round, a fraction.
    drop: of the accuracy on the defender's data, a fraction; the floor is so
      much below the original network.
    proxy_goal: the proxy at or below which the backdoor counts as removed.

  Returns:
    `(key, weights, images u8 [N,H,W,C], labels i32 [N], suspect=None,
    resume_from=None) -> iterator of Round`, where `suspect` is a
    `SuspectedTrigger`. `resume_from` is the round to go on after, of which
    number, weights and last are read: the rest equals an unbroken run.
  """
  measure = _compile_measure(model, batch_size, mesh)
  end = math.ceil(1 / step - 1e-6) - 1  # at 100% nothing would be left

  @jax.jit
  def cut(original, current, percent):
    mask = value_mask(original, percent)
    return mask, zero(current, mask)

  def run_round(key, original, current, data, suspect, floor, number):
    percent = number * step
    mask, params = cut(original.params, current.params, percent)
    pruned = Weights(params, current.batch_stats)
    tuned, _ = tune(jax.random.fold_in(key, number), pruned, *data, mask)
    accuracy = measure(tuned, *data)
    proxy = None if suspect is None else measure(tuned, *data, suspect)
    accepted = accuracy >= floor
    removed = proxy is not None and proxy <= proxy_goal
    return Round(
      number=number,
      percent=percent,
      weights=tuned,
      mask=mask,
      pruned=pruned_share(mask),
      pruned_accuracy=measure(pruned, *data),
      accuracy=accuracy,
      proxy=proxy,
      accepted=accepted,
      last=not accepted or removed or number == end,
    )

  def rounds(key, weights, images, labels, suspect=None, resume_from=None):
    data = images, labels
    # The tolerance is for rounding, as in `stopping_points`.
    floor = measure(weights, *data) - drop - 1e-6
    number, current, last = 0, weights, end == 0
    if resume_from is not None:
      number, current, last = (
        resume_from.number,
        resume_from.weights,
        resume_from.last,
      )
    while not last:
      number += 1
      result = run_round(key, weights, current, data, suspect, floor, number)
      current, last = result.weights, result.last
      yield result

  return rounds


def _compile_measure(model, batch_size, mesh):
  """Compiles the accuracy, or the success rate of a suspected trigger."""
  predict = batching.predictions(model)

  def predict_stamped(args, key, images):
    weights, trigger = args
    images = jax.vmap(stamp, (None, 0))(trigger, images)
    return predict(weights, key, images)

  run = batching.over_images(predict_stamped, batch_size, mesh)

  def measure(weights, images, labels, suspect=None):
    labels = np.asarray(labels)
    counted, expected = np.ones(labels.shape, bool), labels
    shape = images.shape[1:]
    trigger = Trigger(jnp.zeros((*shape[:2], 1)), jnp.zeros(shape))
    if suspect is not None:
      trigger = suspect.trigger
      counted, expected = labels != suspect.label, suspect.label
    predictions = run((weights, trigger), jax.random.key(0), images)
    return float(np.mean((np.asarray(predictions) == expected)[counted]))

  return measure
