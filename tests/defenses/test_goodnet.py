import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bdjax import metrics
from bdjax.defenses.goodnet import agreement, goodnet
from bdjax.defenses.pruning import PruningSettings, pruning

KEY = jax.random.key(0)
FIRST = jnp.array([0, 1, 2, 3, 3], jnp.int32)
SECOND = jnp.array([0, 2, 2, 0, 3], jnp.int32)


def test_agreement_by_hand():
  got = jax.jit(agreement, static_argnums=2)(FIRST, SECOND, 4)
  assert got.tolist() == [0, 4, 2, 4, 3] and got.dtype == jnp.int32
  one_by_one = jax.vmap(lambda a, b: agreement(a, b, 4))(FIRST, SECOND)
  np.testing.assert_array_equal(one_by_one, got)
  labels = np.array([0, 1, 0, 3, 3])
  # An unanswered image is not a right one.
  assert metrics.accuracy(np.asarray(got), labels) == 0.4
  # Five images triggered towards 3: one answer is 3, two are no answer.
  rate = metrics.attack_success_rate(
    np.asarray(got)[None, None], np.array([3]), np.ones((1, 5), bool)
  )
  assert rate.tolist() == [[0.2]]


@pytest.mark.slow
def test_the_network_answers_beside_each_of_its_copies(defender):
  settings = PruningSettings(drops="0.1")
  (alone,), (path,) = pruning(defender, settings), goodnet(defender, settings)
  assert path.refuses and list(path.points) == ["at_0.1"]
  assert path.points["at_0.1"] == alone.points["at_0.1"]
  images = jax.random.uniform(KEY, (50, 8, 8, 1))
  predictions = np.asarray(alone.answer(alone.args, KEY, images))
  got = np.asarray(path.answer(path.args, KEY, images))
  for copy in range(9):
    differs = predictions[:, 0] != predictions[:, copy]
    np.testing.assert_array_equal(got[differs, copy], 4)
    np.testing.assert_array_equal(got[~differs, copy], predictions[~differs, 0])
  assert 0 < (got == 4).mean() < 1
