"""GoodNet: a backdoored network and its pruned copy answer together.

An exercise of New York University's course on machine learning for cyber
security: the pruned network B' of Liu et al. (2018) is right on clean inputs
and not wholly rid of the backdoor B; where the two differ, the input is
suspect and goes to a class of its own.
"""

import jax
import jax.numpy as jnp


def goodnet(first: jax.Array, second: jax.Array, num_classes: int) -> jax.Array:
  """The class on which two networks agree, else one class more.

  The answers are scored as predictions are: the class `num_classes` is no
  image's label and no attack's target, so `metrics.accuracy`,
  `metrics.attack_success_rate` and `metrics.robust_accuracy` count it as
  neither right nor a success.

  Args:
    first: int32 [...], predictions in [0, num_classes).
    second: int32 [...], likewise.
    num_classes: K.

  Returns:
    int32 [...] in [0, K]; K stands for "backdoored".
  """
  return jnp.where(first == second, first, jnp.int32(num_classes))
