"""Neural Cleanse: one search, for one target label from one initialisation.

The trigger of a search is (1 - m) x + m p, with mask m and pattern p the tanh
of free variables scaled to [0,1]; the loss is the cross-entropy towards the
target plus cost * |m|_1. As in the authors' code (`visualizer.py`), all images
are led to the target, those of its own class among them: the success rate is a
little higher than over the others alone.

References:
  Wang et al. (2019), Neural Cleanse: Identifying and Mitigating Backdoor
  Attacks in Neural Networks, section IV, equations 1 to 3.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from bdjax.attacks.patches import Trigger, stamp
from bdjax.batching import to_float
from bdjax.defenses.neural_cleanse import schedule as cost_schedule
from bdjax.defenses.neural_cleanse.schedule import CostSchedule, SearchSettings
from bdjax.models import Model, Weights

# Without its learning rate, which is a setting. The epsilon is Keras's.
_ADAM = optax.scale_by_adam(b1=0.5, b2=0.9, eps=1e-7)


class Variables(NamedTuple):
  """The optimised arrays: any real numbers.

  Attributes:
    mask: float32 [H,W,1].
    pattern: float32 [H,W,C].
  """

  mask: jax.Array
  pattern: jax.Array


class SearchState(NamedTuple):
  """A search; with a leading axis [S], several of them.

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
  schedule: CostSchedule
  best: Trigger
  best_norm: jax.Array
  asr: jax.Array
  steps: jax.Array
  frozen: jax.Array


def init(key: jax.Array, image_shape: tuple[int, int, int]) -> SearchState:
  """Initialise a search, mask and pattern uniform in [0,1].

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
  return SearchState(
    variables=variables,
    opt_state=_ADAM.init(variables),
    schedule=cost_schedule.init(),
    best=Trigger(*jax.tree.map(jnp.zeros_like, variables)),
    best_norm=jnp.full((), jnp.inf),
    asr=jnp.zeros(()),
    steps=jnp.zeros((), jnp.int32),
    frozen=jnp.zeros((), bool),
  )


def to_trigger(variables: Variables) -> Trigger:
  """Convert variables to their trigger: (tanh + 1) / 2 of each."""
  return Trigger(*[(jnp.tanh(v) + 1) / 2 for v in variables])


def draw_rows(
  key: jax.Array, step: jax.Array, num_images: int, settings: SearchSettings
) -> jax.Array:
  """Draw the images of a step, without replacement while there are enough.

  Args:
    key: of the search.
    step: int32 scalar, from 0.
    num_images: at least 1; if it is less than a step needs, each image comes
      in turn.
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
  settings: SearchSettings,
  weights: Weights,
  key: jax.Array,
  images: jax.Array,
  target: jax.Array,
  state: SearchState,
) -> SearchState:
  """Advance one search by one step; a frozen one stays as it is.

  Args:
    model: the classifier, used as at test time.
    settings: of the search.
    weights: of the classifier; no gradient is taken with respect to them.
    key: of the search; the step's is folded in here.
    images: uint8 [N,H,W,C], the defender's.
    target: int32 scalar, the target label.
    state: of the one search, before the step.
  """
  rows = draw_rows(key, state.steps, images.shape[0], settings)
  update = functools.partial(
    _update, model, settings, weights, images, target, state.schedule.cost
  )
  carry = state.variables, state.opt_state
  (variables, opt_state), (hits, norms) = jax.lax.scan(update, carry, rows)

  asr = hits.sum().astype(jnp.float32) / rows.size
  success = asr >= settings.asr_threshold
  norm = norms.mean()
  better = success & (norm < state.best_norm)
  best_norm = jnp.where(better, norm, state.best_norm)
  schedule, stop = cost_schedule.update(
    settings, state.schedule, success, state.best_norm, best_norm
  )
  steps = state.steps + 1
  new = SearchState(
    variables=variables,
    opt_state=opt_state,
    schedule=schedule,
    best=_select(better, to_trigger(variables), state.best),
    best_norm=best_norm,
    asr=jnp.where(better | jnp.isinf(best_norm), asr, state.asr),
    steps=steps,
    frozen=stop | (steps >= settings.steps),
  )
  return _select(state.frozen, state, new)


def _update(model, settings, weights, images, target, cost, carry, rows):
  """Update on one mini-batch: `(carry, (hits, mask norm before it))`."""
  variables, opt_state = carry
  batch = to_float(images[rows])

  def loss_fn(variables):
    trigger = to_trigger(variables)
    stamped = jax.vmap(stamp, in_axes=(None, 0))(trigger, batch)
    logits, _ = model.apply(*weights, stamped)
    targets = jnp.full(logits.shape[:1], target)
    losses = optax.softmax_cross_entropy(
      logits, jax.nn.one_hot(targets, logits.shape[-1])
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
  """Select between two trees by one condition."""
  return jax.tree.map(lambda a, b: jnp.where(condition, a, b), yes, no)
