"""Neural Cleanse: one search, of one target from one start.

Wang et al. (2019), section IV, and the authors' code (`visualizer.py`).
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from bdjax.attacks.triggers import Trigger, stamp
from bdjax.defenses import cost_schedule
from bdjax.defenses.cost_schedule import Schedule, Settings
from bdjax.models import Model, Weights

# Without its learning rate, which is a setting. The epsilon is Keras's.
_ADAM = optax.scale_by_adam(b1=0.5, b2=0.9, eps=1e-7)


class Variables(NamedTuple):
  """What is optimised: any real numbers.

  Attributes:
    mask: float32 [H,W,1].
    pattern: float32 [H,W,C].
  """

  mask: jax.Array
  pattern: jax.Array


class State(NamedTuple):
  """A search; with a leading axis of searches [K], all of them.

  Attributes:
    variables: at the end of the last step.
    opt_state: Adam's.
    schedule: the cost and its counters.
    best: the trigger at the end of the best step; zeros while there is none.
    best_norm: float32, the mask's L1 norm, averaged over the updates of that
      step (by which the authors compare steps); inf while there is none.
    asr: float32, the success rate over the images of that step; while there
      is none, of the last step.
    steps: int32, done.
    frozen: bool, the search is over.
  """

  variables: Variables
  opt_state: optax.ScaleByAdamState
  schedule: Schedule
  best: Trigger
  best_norm: jax.Array
  asr: jax.Array
  steps: jax.Array
  frozen: jax.Array


def start(key: jax.Array, image_shape: tuple[int, int, int]) -> State:
  """A search before its first step, mask and pattern uniform in [0,1].

  Args:
    key: a random key.
    image_shape: (H, W, C).
  """

  def draw(key, channels):
    # Short of the ends, where the inverse of tanh is infinite.
    end = 1 - 1e-6
    shape = (*image_shape[:2], channels)
    return jnp.arctanh(end * jax.random.uniform(key, shape, minval=-1.0))

  mask_key, pattern_key = jax.random.split(key)
  variables = Variables(draw(mask_key, 1), draw(pattern_key, image_shape[2]))
  return State(
    variables=variables,
    opt_state=_ADAM.init(variables),
    schedule=cost_schedule.fresh(),
    best=Trigger(*jax.tree.map(jnp.zeros_like, variables)),
    best_norm=jnp.full((), jnp.inf),
    asr=jnp.zeros(()),
    steps=jnp.zeros((), jnp.int32),
    frozen=jnp.zeros((), bool),
  )


def trigger_of(variables: Variables) -> Trigger:
  """The trigger that variables stand for: (tanh + 1) / 2 of each."""
  return Trigger(*[(jnp.tanh(v) + 1) / 2 for v in variables])


def batch_rows(
  key: jax.Array, step: jax.Array, num_images: int, settings: Settings
) -> jax.Array:
  """The images of a step, drawn without replacement while there are enough.

  Args:
    key: of the search.
    step: int32 scalar, from 0.
    num_images: at least 1; with fewer than a step takes, each comes in turn.
    settings: for the size.

  Returns:
    int32 [updates,batch_size].
  """
  count = settings.updates * settings.batch_size
  epochs = -(-count // num_images)
  keys = jax.random.split(jax.random.fold_in(key, step), epochs)
  rows = jax.vmap(lambda k: jax.random.permutation(k, num_images))(keys)
  rows = rows.reshape(-1)[:count].astype(jnp.int32)
  return rows.reshape(settings.updates, settings.batch_size)


def advance(
  model: Model,
  settings: Settings,
  weights: Weights,
  key: jax.Array,
  images: jax.Array,
  target: jax.Array,
  state: State,
) -> State:
  """One step of one search; a frozen one stays as it is.

  Args:
    model: the classifier, used as at test time.
    settings: of the search.
    weights: of the classifier; no gradient is taken by them.
    key: of the search; the step's is folded in here.
    images: uint8 [N,H,W,C], the defender's.
    target: int32 scalar, the class to lead to.
    state: of the one search, before the step.
  """
  rows = batch_rows(key, state.steps, images.shape[0], settings)
  run = functools.partial(
    _update, model, settings, weights, images, target, state.schedule.cost
  )
  carry = state.variables, state.opt_state
  (variables, opt_state), (hits, norms) = jax.lax.scan(run, carry, rows)

  asr = hits.sum().astype(jnp.float32) / rows.size
  success = asr >= settings.asr_threshold
  norm = norms.mean()
  better = success & (norm < state.best_norm)
  best_norm = jnp.where(better, norm, state.best_norm)
  schedule, stop = cost_schedule.reschedule(
    settings, state.schedule, success, state.best_norm, best_norm
  )
  steps = state.steps + 1
  new = State(
    variables=variables,
    opt_state=opt_state,
    schedule=schedule,
    best=_select(better, trigger_of(variables), state.best),
    best_norm=best_norm,
    asr=jnp.where(better | jnp.isinf(best_norm), asr, state.asr),
    steps=steps,
    frozen=stop | (steps >= settings.steps),
  )
  return _select(state.frozen, state, new)


def _update(model, settings, weights, images, target, cost, carry, rows):
  """One mini-batch: `(carry, (hits, norm of the mask before the update))`."""
  variables, opt_state = carry
  batch = images[rows].astype(jnp.float32) / 255.0

  def loss_fn(variables):
    trigger = trigger_of(variables)
    stamped = jax.vmap(stamp, in_axes=(None, 0))(trigger, batch)
    logits, _ = model.apply(*weights, stamped, False)
    wanted = jnp.full(logits.shape[:1], target)
    losses = optax.softmax_cross_entropy(
      logits, jax.nn.one_hot(wanted, logits.shape[-1])
    )
    norm = trigger.mask.sum()
    hits = jnp.sum(logits.argmax(-1) == target)
    return losses.mean() + cost * norm, (hits, norm)

  grads, aux = jax.grad(loss_fn, has_aux=True)(variables)
  # Optax mixes dtypes of its own (float ** int32 in Adam).
  with jax.numpy_dtype_promotion("standard"):
    directions, opt_state = _ADAM.update(grads, opt_state)
  variables = jax.tree.map(
    lambda v, d: v - settings.learning_rate * d, variables, directions
  )
  return (variables, opt_state), aux


def _select(condition, yes, no):
  """`jnp.where` of trees, for one condition."""
  return jax.tree.map(lambda a, b: jnp.where(condition, a, b), yes, no)
