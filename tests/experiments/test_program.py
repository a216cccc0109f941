import jax
import numpy as np
import pytest

from experiments.common.attack import parse_locations, parse_targets
from experiments.common.program import make_keys


def test_no_stream_is_shared():
  # fold_in(key, i) is the i-th key of split(key): a stream that were another
  # one, or came from another by a step or two, would show here.
  seen = []
  for seed in (0, 1):
    for key in make_keys(seed):
      family = [key, *jax.random.split(key, 8)]
      family += [k for one in family[1:] for k in jax.random.split(one, 8)]
      seen += [tuple(np.asarray(jax.random.key_data(k))) for k in family]
  assert len(set(seen)) == len(seen)


@pytest.mark.parametrize(
  "text, want", [("all", (0, 1, 2)), ("2", (2,)), ("2,0", (2, 0))]
)
def test_targets(text, want):
  assert parse_targets(text, 3) == want


def test_locations_by_hand():
  one = parse_locations("1:2", 2, 3, 8, 9)
  np.testing.assert_array_equal(one, [[[1, 2, 4, 5]]] * 2)
  each = parse_locations("0:0;5:6", 2, 3, 8, 9)
  np.testing.assert_array_equal(each, [[[0, 0, 3, 3]], [[5, 6, 8, 9]]])
  two = parse_locations("0:0,5:6", 1, 3, 8, 9)
  np.testing.assert_array_equal(two, [[[0, 0, 3, 3], [5, 6, 8, 9]]])
  grid = parse_locations("grid", 2, 3, 8, 9)
  np.testing.assert_array_equal(grid, [[[0, 0, 8, 4]], [[0, 4, 8, 9]]])
  anywhere = parse_locations("anywhere", 1, 3, 8, 9)
  np.testing.assert_array_equal(anywhere, [[[0, 0, 8, 9]]])
