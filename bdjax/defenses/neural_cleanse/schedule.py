"""Neural Cleanse: the weight of the mask's size, and the early stop.

The paper only says that the weight is adjusted while the search runs; this is
the schedule of the authors' code (`visualizer.py`), as counters and
`jnp.where`. A step of the schedule is several updates of the trigger.

References:
  Wang, Yao, Shan, Li, Viswanath, Zheng and Zhao (2019), Neural Cleanse:
  Identifying and Mitigating Backdoor Attacks in Neural Networks, section IV.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from bdjax.settings import setting


@dataclasses.dataclass(frozen=True)
class SearchSettings:
  """Settings of the search for a trigger; the defaults are the authors'.

  Of the two early stops that they publish this is their library's; their
  GTSRB example waits for longer: `early_stop_threshold` 1.0,
  `early_stop_patience` 25.
  """

  steps: int = setting(
    1000,
    "Steps of the cost schedule, at most; most searches stop early.",
    low=1,
  )
  updates: int = setting(31, "Mini-batches of a step.", low=1)
  batch_size: int = setting(32, "Images of a mini-batch.", low=1)
  learning_rate: float = setting(
    0.1, "Learning rate of the search (Adam, betas 0.5 and 0.9).", above=0
  )
  asr_threshold: float = setting(
    0.99,
    "Attack success rate that a mask must reach on the images of a step.",
    above=0,
    high=1,
  )
  init_cost: float = setting(
    1e-3,
    "Cost of a mask's size after the first `patience` successful steps in a "
    "row; it is 0 before.",
    above=0,
  )
  cost_multiplier: float = setting(
    2.0,
    "Factor of the cost after `patience` successful steps in a row; after as "
    "many failures the cost is divided by its power of 1.5.",
    above=1,
  )
  patience: int = setting(5, "Steps before the cost changes.", low=1)
  early_stop_threshold: float = setting(
    0.99,
    "Share of the smallest mask so far; a mask at or above it is no progress.",
    above=0,
    high=1,
  )
  early_stop_patience: int = setting(
    10,
    "Steps in a row without progress that end a search, once its cost has "
    "risen and fallen.",
    low=1,
  )


class CostSchedule(NamedTuple):
  """The cost and the counters that change it; scalars.

  Attributes:
    cost: float32, the weight of the mask's norm in the loss.
    successes: int32, in a row.
    failures: int32, in a row.
    raised: bool, since the cost was first set.
    lowered: bool, likewise.
    stalled: int32, steps in a row without a smaller mask.
  """

  cost: jax.Array
  successes: jax.Array
  failures: jax.Array
  raised: jax.Array
  lowered: jax.Array
  stalled: jax.Array


def init() -> CostSchedule:
  """Return the schedule before the first step: cost 0."""
  zero, no = jnp.zeros((), jnp.int32), jnp.zeros((), bool)
  return CostSchedule(jnp.zeros(()), zero, zero, no, no, zero)


def update(
  settings: SearchSettings,
  schedule: CostSchedule,
  success: jax.Array,
  best_norm: jax.Array,
  new_best_norm: jax.Array,
) -> tuple[CostSchedule, jax.Array]:
  """Update the cost at the end of a step, in the authors' order of events.

  Args:
    settings: the thresholds and patiences.
    schedule: before.
    success: bool scalar, whether the step reached `asr_threshold`.
    best_norm: float32 scalar, the smallest before the step; inf for none.
    new_best_norm: likewise after it, at most `best_norm`.

  Returns:
    (schedule, whether to stop: bool scalar). Stopping leaves the cost alone.
  """
  stale = new_best_norm >= settings.early_stop_threshold * best_norm
  stale &= jnp.isfinite(new_best_norm)
  stalled = jnp.where(stale, schedule.stalled + 1, 0)
  stop = stalled >= settings.early_stop_patience
  stop &= schedule.raised & schedule.lowered

  first = success & (schedule.successes + 1 >= settings.patience)
  first &= schedule.cost == 0
  cost = jnp.where(first, settings.init_cost, schedule.cost)
  # The success that sets the cost also counts as the first towards raising it.
  successes = jnp.where(first, 0, schedule.successes)
  successes = jnp.where(success, successes + 1, 0)
  failures = jnp.where(success, 0, schedule.failures + 1)
  up = successes >= settings.patience
  down = failures >= settings.patience
  cost *= jnp.where(up, settings.cost_multiplier, 1.0)
  cost /= jnp.where(down, settings.cost_multiplier**1.5, 1.0)
  changed = CostSchedule(
    cost,
    jnp.where(up, 0, successes),
    jnp.where(down, 0, failures),
    schedule.raised | up,  # never before the cost is set
    (schedule.lowered & ~first) | down,
    stalled,
  )
  kept = schedule._replace(stalled=stalled)
  return jax.tree.map(lambda a, b: jnp.where(stop, a, b), kept, changed), stop
