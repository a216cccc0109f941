import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from bdjax import metrics


def test_accuracy_by_hand():
  assert metrics.accuracy(np.array([1, 2, 3, 4]), np.array([1, 2, 0, 0])) == 0.5


# One draw, targets 0 and 2; labels 0 0 1 2. Towards 0 only the images labelled
# 1 and 2 count, towards 2 only those labelled 0, 0 and 1.
LABELS = np.array([0, 0, 1, 2])
TARGETS = np.array([0, 2])
COUNTS = LABELS[None] != TARGETS[:, None]
PREDICTIONS = np.array([[[0, 0, 0, 2], [2, 0, 1, 2]]])


def test_attack_success_rate_by_hand():
  got = metrics.attack_success_rate(PREDICTIONS, TARGETS, COUNTS)
  np.testing.assert_allclose(got, [[1 / 2, 1 / 3]])


def test_robust_accuracy_by_hand():
  got = metrics.robust_accuracy(PREDICTIONS, LABELS, COUNTS)
  np.testing.assert_allclose(got, [[1 / 2, 2 / 3]])


def test_images_of_the_target_do_not_count():
  predictions = PREDICTIONS.copy()
  predictions[0, 0, :2] = 1  # the images labelled 0, towards 0
  predictions[0, 1, 3] = 1  # the image labelled 2, towards 2
  for score, by in (
    (metrics.attack_success_rate, TARGETS),
    (metrics.robust_accuracy, LABELS),
  ):
    np.testing.assert_array_equal(
      score(predictions, by, COUNTS), score(PREDICTIONS, by, COUNTS)
    )


def test_success_matrix_by_hand():
  draws = np.concatenate([PREDICTIONS, np.zeros_like(PREDICTIONS)])
  got = metrics.success_matrix(draws, LABELS, TARGETS, COUNTS, 4)
  nan = np.nan
  np.testing.assert_allclose(
    got, [[nan, 1.0, 0.5, nan], [1 / 4, 0.0, nan, nan]]
  )


def test_no_image_but_the_targets():
  got = metrics.attack_success_rate(
    np.zeros((1, 1, 2), int), np.array([0]), np.zeros((1, 2), bool)
  )
  assert np.isnan(got).all()


@pytest.mark.parametrize("hits, n", [(0, 10), (10, 10), (7, 10), (9950, 10000)])
def test_proportion_is_wilsons(hits, n):
  expected = stats.binomtest(hits, n).proportion_ci(method="wilson")
  got = metrics.proportion(hits / n, n, "labels")
  assert got[1:3] == pytest.approx(tuple(expected), abs=1e-12)
  assert got.low <= got.mean <= got.high
  assert got[3:] == (n, "labels", "share")


@settings(deadline=None, database=None)
@given(
  st.lists(st.floats(-100, 100), min_size=2, max_size=8).filter(
    lambda values: np.std(values) > 1e-3
  )
)
def test_student_interval_is_scipys(values):
  expected = stats.ttest_1samp(values, 0.0).confidence_interval(0.95)
  got = metrics.student_interval(values, "seeds", "number")
  assert got[:3] == pytest.approx((np.mean(values), *expected), abs=1e-9)
  assert got[3:] == (len(values), "seeds", "number")


def test_over_seeds_by_hand():
  # Student's t with two degrees of freedom: 4.3027; sd 0.1.
  half = 4.302653 * 0.1 / 3**0.5
  got = metrics.over_seeds([0.5, 0.6, 0.7])
  assert got[:3] == pytest.approx((0.6, 0.6 - half, 0.6 + half), abs=1e-6)
  assert got[3:] == (3, "seeds", "share")


def test_intervals_stay_in_the_range_of_their_unit():
  assert metrics.over_seeds([0.9, 1.0]).high == 1.0
  assert metrics.over_seeds([0.0, 9.0], "index").low == 0.0
  assert metrics.over_seeds([-1.0, 3.0], "number").low < -20
  assert metrics.difference_over_seeds([-1.0, 0.9])[1:3] == (-1.0, 1.0)


def test_one_observation_says_nothing_about_the_spread():
  assert metrics.over_seeds([0.9])[1:3] == (0.0, 1.0)
  assert metrics.over_seeds([3.0], "pixels")[:3] == (3.0, 0.0, np.inf)
  assert metrics.difference_over_seeds([-0.1])[1:3] == (-1.0, 1.0)
  empty = metrics.student_interval(np.zeros(0), "restarts", "index")
  assert np.isnan(empty.mean)
  assert empty[1:] == (0.0, np.inf, 0, "restarts", "index")


@pytest.mark.parametrize(
  "before, after, expected",
  [
    ((0.9, 1.0), (0.9, 0.0), 1.0),
    ((0.9, 1.0), (0.9, 1.0), 0.5),
    # The attack falls by 0.5, accuracy by 0.1: (0.5 - 0.1 + 1) / 2.
    ((0.9, 1.0), (0.8, 0.5), 0.7),
    # What gets better counts neither for nor against it.
    ((0.8, 0.5), (0.9, 0.6), 0.5),
    ((1.0, 0.0), (0.0, 0.0), 0.0),
  ],
)
def test_defense_effectiveness_rate_by_hand(before, after, expected):
  got = metrics.defense_effectiveness_rate(before, after)
  assert got == pytest.approx(expected)


def test_difference_by_hand():
  # Newcombe (1998), table II, example (a): 56/70 against 48/80.
  got = metrics.difference(
    metrics.proportion(56 / 70, 70), metrics.proportion(48 / 80, 80)
  )
  assert got.mean == pytest.approx(0.2)
  assert got.low == pytest.approx(0.0524, abs=1e-4)
  assert got.high == pytest.approx(0.3339, abs=1e-4)
  assert got[3:] == (70, "test images", "share")


def test_auroc_by_hand():
  # Of the 2 x 3 pairs (low, high), 4 are in order and one is a tie.
  got = metrics.auroc(np.array([1.0, 3.0]), np.array([2.0, 3.0, 4.0]))
  assert got.mean == pytest.approx(4.5 / 6)
  assert got.low <= got.mean <= got.high


@pytest.mark.parametrize("shift, area", [(10.0, 1.0), (-10.0, 0.0)])
def test_auroc_of_samples_apart(shift, area):
  low = np.linspace(0, 1, 5)
  assert metrics.auroc(low, low + shift)[:3] == (area, area, area)


@settings(deadline=None, database=None)
@given(
  st.lists(st.integers(0, 9), min_size=1, max_size=20),
  st.lists(st.integers(0, 9), min_size=1, max_size=20),
)
def test_auroc_is_mann_whitneys_u(low, high):
  low, high = np.array(low, float), np.array(high, float)
  u = stats.mannwhitneyu(high, low).statistic / (len(low) * len(high))
  got = metrics.auroc(low, high, "labels", resamples=10)
  assert got.mean == pytest.approx(u)
  assert got[3:] == (min(len(low), len(high)), "labels", "share")


def test_aurocs_interval_is_near_the_normal_one():
  rng = np.random.default_rng(0)
  low, high = rng.normal(0, 1, 200), rng.normal(1, 1, 300)
  got = metrics.auroc(low, high)
  u = got.mean
  # Hanley and McNeil's (1982) standard error, from the area alone.
  q1, q2 = u / (2 - u), 2 * u * u / (1 + u)
  spread = u * (1 - u) + 199 * (q1 - u * u) + 299 * (q2 - u * u)
  error = (spread / (200 * 300)) ** 0.5
  assert got.high - got.low == pytest.approx(2 * 1.96 * error, rel=0.15)
