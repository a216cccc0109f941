import numpy as np
import pytest

from bdjax.defenses import anomaly
from bdjax.errors import UserError

ALL = np.ones(5, bool)


def test_index_by_hand():
  # Median 30; distances 28, 10, 0, 10, 20, whose median is 10.
  norms = np.array([2.0, 20, 30, 40, 50])
  index = anomaly.anomaly_index(norms, ALL)
  want = np.array([28, 10, 0, 10, 20]) / 14.826
  np.testing.assert_allclose(index, want, rtol=1e-12)
  assert anomaly.statistic(norms, index) == pytest.approx(28 / 14.826)
  assert anomaly.flagged(norms, index) == []  # 1.89
  assert anomaly.flagged(norms, index, 1.8) == [0]


def test_index_needs_no_scale_and_no_order():
  rng = np.random.default_rng(1)
  norms = rng.random(11) * 100
  index = anomaly.anomaly_index(norms, np.ones(11, bool))
  order = rng.permutation(11)
  scaled = anomaly.anomaly_index(7 * norms[order] + 3, np.ones(11, bool))
  np.testing.assert_allclose(scaled, index[order], rtol=1e-9)


def test_only_small_masks_are_flagged_smallest_first():
  norms = np.array([100.0, 101, 99, 1, 300, 102, 98, 5])
  index = anomaly.anomaly_index(norms, np.ones(8, bool))
  assert index[4] > 2
  assert anomaly.flagged(norms, index) == [3, 7]
  assert anomaly.statistic(norms, index) == index[3]


def test_nothing_below_the_median():
  norms, index = np.array([3.0, 3, 3, 4]), np.array([1.0, 2, 3, 4])
  assert anomaly.statistic(norms, index) == 0
  assert anomaly.flagged(norms, index) == []


def test_not_reached_is_never_a_small_norm():
  norms = np.array([10.0, 2, 20, 30, 40, 50])
  reached = np.array([False, True, True, True, True, True])
  index = anomaly.anomaly_index(norms, reached)
  assert np.isnan(index[0])
  np.testing.assert_array_equal(
    index[1:], anomaly.anomaly_index(norms[1:], ALL)
  )
  for absent in (0.0, np.nan):
    norms[0] = absent
    np.testing.assert_array_equal(index, anomaly.anomaly_index(norms, reached))
    assert anomaly.flagged(norms, index, 1.8) == [1]
    assert anomaly.statistic(norms, index) == index[1]


@pytest.mark.parametrize(
  "norms,reached,message",
  [
    ([5, 5, 5, 5, 1], ALL, "deviation of the mask norms is 0"),
    ([1, 2, 3, 4, 5], np.arange(5) < 2, "2 of 5 classes reached"),
    ([np.nan] * 5, ~ALL, "0 of 5 classes reached"),
  ],
)
def test_no_index(norms, reached, message):
  with pytest.raises(UserError, match=message) as error:
    anomaly.anomaly_index(np.array(norms, float), reached)
  assert "\n" not in str(error.value)


def test_p_value_by_hand():
  assert anomaly.p_value(3.0, [1.0, 2.0, 3.0, 4.0]) == pytest.approx(3 / 5)
  assert anomaly.p_value(5.0, [1.0] * 19) == pytest.approx(1 / 20)
  assert anomaly.p_value(0.5, [1.0] * 19) == 1
  assert anomaly.p_value(0.5, []) == 1


def test_intervals_over_restarts_by_hand():
  index = np.array(
    [[1.0, 0.1, 4, np.nan], [2, 0.3, np.nan, np.nan], [3, 5, np.nan, np.nan]]
  )
  scores = anomaly.over_restarts(index)
  assert [s.n for s in scores] == [3, 3, 1, 0]
  assert {s.over for s in scores} == {"restarts"}
  # t(0.975, 2) = 4.3027, sd 1.
  half = 4.30265273 / np.sqrt(3)
  assert scores[0].mean == 2
  assert scores[0].low == 0  # 2 - half is negative
  assert scores[0].high == pytest.approx(2 + half)
  assert scores[1].low == 0
  assert scores[2][:3] == (4, 0, np.inf)
  assert np.isnan(scores[3].mean)
  close = anomaly.over_restarts(index[:, :1] + 10)[0]
  assert close.low == pytest.approx(12 - half)
