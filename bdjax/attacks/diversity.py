"""Diversity of triggers: how much they differ from draw to draw."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

# Root mean square difference of two U[0,1] draws.
_UNIFORM_RMS = 6.0**-0.5


def diversity_loss(
  draw: Callable[[jax.Array, jax.Array], jax.Array],
  key: jax.Array,
  num_targets: int,
  diversity: float,
  across_labels: bool = False,
  pairs: int = 32,
) -> jax.Array:
  """Compute how far a generator's triggers are from the wanted diversity.

  The loss of BaN alone has its optimum at one fixed trigger for each label, a
  static backdoor: minimised to the end it gets there. Adding this, weighted,
  keeps the backdoor dynamic. That of Nguyen and Tran is a ratio without an
  upper bound; this one ends at 0 once the triggers differ as much as wanted.

  Args:
    draw: `(key, index i32 [B]) -> float32 [B,s,s,C]`, triggers for targets.
    key: a random key.
    num_targets: T.
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

  References:
    Nguyen and Tran (2020), Input-Aware Dynamic Backdoor Attack, equation 5:
    the idea.
  """
  index_key, first_key, second_key = jax.random.split(key, 3)
  index = jax.random.randint(index_key, (pairs,), 0, num_targets)
  first = draw(first_key, index)
  loss = _shortfall(first - draw(second_key, index), diversity)
  if across_labels and num_targets > 1:
    other = draw(first_key, (index + 1) % num_targets)
    loss += _shortfall(first - other, 1.0)
  return loss


def _shortfall(difference, wanted):
  mean_square = jnp.square(difference).mean((1, 2, 3))
  # The root's gradient is infinite at 0, where a collapsed generator is.
  rms = jnp.sqrt(mean_square + 1e-8)
  return jnp.maximum(wanted - rms / _UNIFORM_RMS, 0.0).mean()
