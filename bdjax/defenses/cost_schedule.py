"""Neural Cleanse: how much the mask's size weighs, and when to stop.

Wang et al. (2019), section IV. The paper only says that the weight is adjusted
while the search runs; this is the schedule of the authors' code
(`visualizer.py`), as counters and `jnp.where`. A step of it is several
updates.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from bdjax.errors import UserError


class Settings(NamedTuple):
  """What a search is told; the defaults are the authors'.

  Of the two early stops that they publish this is their library's; their
  GTSRB example waits for longer: threshold 1.0, patience 25.

  Attributes:
    steps: of the schedule, at most.
    updates: mini-batches a step: 1000 images in batches of 32.
    batch_size: images an update.
    learning_rate: of Adam with betas (0.5, 0.9).
    asr_threshold: share of a step's images, in (0,1], that must reach the
      target for the step to be a success.
    init_cost: what the cost is set to after the first `patience` successes in
      a row; it is 0 before.
    cost_multiplier: the cost is multiplied by it after `patience` successes
      in a row, and divided by its power of 1.5 after as many failures.
    patience: in steps.
    early_stop_threshold: in (0,1]; a step that leaves the smallest norm at or
      above this share of what it was has not improved on it.
    early_stop_patience: so many steps in a row without improvement end the
      search, if its cost has risen and fallen since it was first set.
  """

  steps: int = 1000
  updates: int = 31
  batch_size: int = 32
  learning_rate: float = 0.1
  asr_threshold: float = 0.99
  init_cost: float = 1e-3
  cost_multiplier: float = 2.0
  patience: int = 5
  early_stop_threshold: float = 0.99
  early_stop_patience: int = 10


class Schedule(NamedTuple):
  """The cost and what moves it; scalars.

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


def fresh() -> Schedule:
  """The schedule before the first step: cost 0."""
  zero, no = jnp.zeros((), jnp.int32), jnp.zeros((), bool)
  return Schedule(jnp.zeros(()), zero, zero, no, no, zero)


def reschedule(
  settings: Settings,
  schedule: Schedule,
  success: jax.Array,
  best_norm: jax.Array,
  new_best_norm: jax.Array,
) -> tuple[Schedule, jax.Array]:
  """Moves the cost at the end of a step, in the authors' order of events.

  Args:
    settings: the thresholds and patiences.
    schedule: before.
    success: bool scalar, whether the step reached the success rate wanted.
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

  start = success & (schedule.successes + 1 >= settings.patience)
  start &= schedule.cost == 0
  cost = jnp.where(start, settings.init_cost, schedule.cost)
  # The success that sets the cost also counts as the first towards raising it.
  successes = jnp.where(start, 0, schedule.successes)
  successes = jnp.where(success, successes + 1, 0)
  failures = jnp.where(success, 0, schedule.failures + 1)
  up = successes >= settings.patience
  down = failures >= settings.patience
  cost *= jnp.where(up, settings.cost_multiplier, 1.0)
  cost /= jnp.where(down, settings.cost_multiplier**1.5, 1.0)
  moved = Schedule(
    cost,
    jnp.where(up, 0, successes),
    jnp.where(down, 0, failures),
    schedule.raised | up,  # never before the cost is set
    (schedule.lowered & ~start) | down,
    stalled,
  )
  kept = schedule._replace(stalled=stalled)
  return jax.tree.map(lambda a, b: jnp.where(stop, a, b), kept, moved), stop


def check(settings: Settings) -> None:
  """Checks that a search can be run with these settings.

  Raises:
    UserError: one of them is out of range.
  """
  shares = ("asr_threshold", "early_stop_threshold")
  positive = ("learning_rate", "init_cost")
  for name, value in settings._asdict().items():
    if name in shares:
      fits, wanted = 0 < value <= 1, "more than 0 and at most 1"
    elif name in positive:
      fits, wanted = value > 0, "more than 0"
    elif name == "cost_multiplier":
      fits, wanted = value > 1, "more than 1"
    else:
      fits, wanted = value >= 1, "at least 1"
    if not fits:
      raise UserError(f"{name} is {value}; take {wanted}")
