import jax
import jax.numpy as jnp
import numpy as np

from bdjax import metrics
from bdjax.defenses import goodnet

FIRST = jnp.array([0, 1, 2, 3, 3], jnp.int32)
SECOND = jnp.array([0, 2, 2, 0, 3], jnp.int32)


def test_agreement_by_hand():
  got = jax.jit(goodnet.goodnet, static_argnums=2)(FIRST, SECOND, 4)
  assert got.tolist() == [0, 4, 2, 4, 3] and got.dtype == jnp.int32
  each = jax.vmap(lambda a, b: goodnet.goodnet(a, b, 4))(FIRST, SECOND)
  np.testing.assert_array_equal(each, got)
  labels = np.array([0, 1, 0, 3, 3])
  # An unanswered image is not a right one.
  assert metrics.accuracy(np.asarray(got), labels) == 0.4
  # Five images triggered towards 3: one answer is 3, two are no answer.
  rate = metrics.attack_success_rate(
    np.asarray(got)[None, None], np.array([3]), np.ones((1, 5), bool)
  )
  assert rate.tolist() == [[0.2]]
