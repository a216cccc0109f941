import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bdjax import models, sharding
from bdjax.defenses import k_arm
from bdjax.defenses.k_arm import BanditSettings
from bdjax.defenses.neural_cleanse import searches
from bdjax.defenses.neural_cleanse.schedule import SearchSettings
from bdjax.errors import UserError
from bdjax.models import Weights

KEY = jax.random.key(3)
SHAPE = (8, 8, 1)
NUM = 5
INF = np.inf
ROUND_STEPS = 3
SETTINGS = SearchSettings(
  steps=30,
  updates=2,
  batch_size=4,
  asr_threshold=0.5,
  init_cost=0.02,
  patience=2,
  early_stop_patience=3,
)
GREEDY = BanditSettings(
  warmup=1, epsilon=0.0, beta=100.0, rounds=10**6, converged=2
)


def _scan(norms, first=None, rounds=None, frozen=None, number=0):
  """A scan with searches that are nothing but their norms."""
  num = len(norms)
  scan = k_arm.init(KEY, num, (2, 2, 1))
  norms = np.array(norms, np.float32)
  states = scan.searches._replace(
    best_norm=norms,
    frozen=np.array(frozen or [False] * num),
  )
  return scan._replace(
    searches=states,
    first_norm=norms.copy() if first is None else np.array(first, np.float32),
    rounds=np.array(rounds or [9] * num, np.int32),
    round_number=np.int32(number),
  )


NONE = np.zeros(4, bool)


def test_reward_by_hand():
  got = k_arm.reward(
    np.array([100.0, 100.0, INF, 50.0]),
    np.array([60.0, 100.0, INF, 0.0]),
    np.array([4, 2, 7, 5]),
    beta=1200.0,
  )
  # 40 / 4 + 1200 / 60; nothing fallen; not reached; a mask of nothing.
  np.testing.assert_allclose(got[:3], [30.0, 12.0, 0.0])
  assert got[3] > 1e6 and np.isfinite(got[3])


def test_warms_up_in_order_then_ends_the_sample():
  reference = np.array([False, True, False, True])
  bandit = dataclasses.replace(GREEDY, warmup=2)
  scan = _scan([9, 8, 7, 6], rounds=[2, 1, 0, 1], frozen=[False] * 4)
  assert k_arm.choose(KEY, scan, reference, bandit)[0].tolist() == [2]
  assert k_arm.choose(KEY, scan, reference, bandit, 4)[0].tolist() == [2, 1, 3]
  scan = _scan([9, 8, 7, 6], rounds=[2, 5, 2, 3])
  arms, by_bandit = k_arm.choose(KEY, scan, reference, bandit)
  assert (arms.tolist(), by_bandit) == ([3], False)
  scan = _scan([9, 8, 7, 6], frozen=[False, True, False, True])
  assert k_arm.choose(KEY, scan, reference, bandit)[1]


def test_chooses_the_largest_reward():
  # Rewards: 10 + 10, 0 + 50, 0, and one that is done.
  scan = _scan(
    [10, 2, INF, 1],
    first=[30, 2, INF, 1],
    rounds=[2, 2, 2, 2],
    frozen=[False, False, False, True],
  )
  for width, expected in ((1, [1]), (2, [1, 0]), (9, [1, 0, 2])):
    arms, by_bandit = k_arm.choose(KEY, scan, NONE, GREEDY, width)
    assert (arms.tolist(), by_bandit) == (expected, True)


def test_explores_with_probability_epsilon():
  def share(epsilon):
    hits = 0
    for number in range(400):
      scan = base._replace(round_number=np.int32(number))
      bandit = dataclasses.replace(GREEDY, epsilon=epsilon)
      hits += k_arm.choose(KEY, scan, NONE, bandit)[0][0] == 2
    return hits / 400

  base = _scan([9, 8, 1, 7])
  assert share(0.0) == 1
  assert share(0.3) == pytest.approx(0.7 + 0.3 / 4, abs=0.08)
  assert share(1.0) == pytest.approx(0.25, abs=0.08)


def test_a_draw_depends_on_key_and_round_alone():
  bandit = dataclasses.replace(GREEDY, epsilon=1.0)
  scan = _scan(range(1, 41), number=7)
  none = np.zeros(40, bool)

  def draw(key, scan):
    return k_arm.choose(key, scan, none, bandit, 5)[0].tolist()

  other = _scan(range(40, 0, -1), number=7)
  assert draw(KEY, scan) == draw(KEY, other)
  assert draw(KEY, scan) != draw(KEY, _scan(range(1, 41), number=8))
  assert draw(KEY, scan) != draw(jax.random.key(4), scan)
  assert len(set(draw(KEY, scan))) == 5


def test_ends_when_the_smallest_outside_of_the_sample_are_done():
  reference = np.array([True, False, False, False])

  def ended(frozen, bandit=GREEDY, by_bandit=0):
    scan = _scan([1, 5, 2, 3], frozen=[bool(x) for x in frozen])
    scan = scan._replace(bandit_rounds=np.int32(by_bandit))
    return k_arm.finished(scan, reference, bandit)

  assert ended([1, 0, 1, 1])
  assert not ended([0, 0, 1, 1])  # the sample is not
  assert not ended([1, 1, 1, 0])
  assert not ended([1, 0, 0, 0], dataclasses.replace(GREEDY, rounds=5), 4)
  assert ended([1, 0, 0, 0], dataclasses.replace(GREEDY, rounds=5), 5)
  assert not ended([1, 0, 1, 1], dataclasses.replace(GREEDY, warmup=10))


def test_reference_is_a_sample_of_its_size():
  drawn = k_arm.draw_reference(KEY, 100, 30)
  assert drawn.shape == (100,) and drawn.sum() == 30
  assert (drawn != k_arm.draw_reference(jax.random.key(4), 100, 30)).any()
  assert k_arm.draw_reference(KEY, 20, 30).all()


@functools.cache
def _network():
  model = models.get("cnn", image_shape=SHAPE, num_classes=NUM, width=4)
  weights = Weights(*jax.jit(model.init)(KEY))
  images = jax.random.randint(KEY, (12, *SHAPE), 0, 256).astype(jnp.uint8)
  return model, weights, images


@functools.cache
def _call(devices):
  mesh = sharding.make_mesh(jax.devices()[:devices])
  return k_arm.compile_search_steps(
    _network()[0], SETTINGS, mesh, steps_per_call=ROUND_STEPS
  )


def _advance(scan, reference, bandit, width=1, stop=10**6):
  """Runs to the end, or for `stop` rounds."""
  _, weights, images = _network()
  call = functools.partial(_call(width), weights, KEY, images)
  while not k_arm.finished(scan, reference, bandit) and stop:
    arms, by_bandit = k_arm.choose(KEY, scan, reference, bandit, width)
    scan = k_arm.run_round(call, arms, by_bandit, width, scan)
    stop -= 1
  return scan


def _init():
  return k_arm.init(KEY, NUM, SHAPE)


def _same(a, b):
  jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.fixture(scope="module")
def whole():
  """Neural Cleanse of all classes at once, to the end."""
  model, weights, images = _network()
  call = searches.compile_search_steps(
    model,
    SETTINGS,
    sharding.make_mesh(jax.devices()[:1]),
    class_batch=1,
    steps_per_call=SETTINGS.steps,
  )
  state = jax.tree.map(jnp.asarray, _init().searches)
  targets = jnp.arange(NUM, dtype=jnp.int32)
  return jax.device_get(call(weights, KEY, images, targets, state))


@pytest.mark.slow
@pytest.mark.parametrize("width", [1, 2])
def test_an_arm_does_what_neural_cleanse_does(whole, width):
  """Whatever the order in which arms had their rounds."""
  bandit = dataclasses.replace(GREEDY, epsilon=0.5, converged=NUM)
  none = np.zeros(NUM, bool)
  scan = _advance(_init(), none, bandit, width)
  assert scan.searches.frozen.all() and np.isfinite(whole.best_norm).any()
  np.testing.assert_array_equal(scan.searches.steps, whole.steps)
  np.testing.assert_allclose(
    scan.searches.best_norm, whole.best_norm, rtol=1e-3
  )
  np.testing.assert_array_equal(
    scan.rounds, -(-scan.searches.steps // ROUND_STEPS)
  )
  assert (scan.first_norm >= scan.searches.best_norm).all()
  # A round has at least one arm, and at most `width`.
  assert (
    -(-scan.rounds.sum() // width) <= scan.round_number <= scan.rounds.sum()
  )
  assert scan.bandit_rounds < scan.round_number


@pytest.mark.slow
def test_a_round_costs_its_arms_alone():
  none = np.zeros(NUM, bool)
  before = _init()
  init = k_arm.writable(before.searches)
  after = _advance(before, none, GREEDY, stop=2)
  assert after.searches.steps.tolist() == [ROUND_STEPS, ROUND_STEPS, 0, 0, 0]
  assert after.rounds.tolist() == [1, 1, 0, 0, 0]
  _same(*[jax.tree.map(lambda x: x[2:], s) for s in (init, after.searches)])


def test_resumed_equals_unbroken():
  reference = k_arm.draw_reference(KEY, NUM, 2)
  bandit = dataclasses.replace(GREEDY, epsilon=0.5)
  unbroken = _advance(_init(), reference, bandit)
  half = _advance(
    _init(), reference, bandit, stop=int(unbroken.round_number) - 2
  )
  assert half.bandit_rounds > 0
  kept = k_arm.writable(jax.tree.map(jnp.asarray, half))
  _same(_advance(kept, reference, bandit), unbroken)


def test_saves_steps():
  reference = k_arm.draw_reference(KEY, NUM, 2)
  scan = _advance(_init(), reference, dataclasses.replace(GREEDY, converged=1))
  assert scan.searches.frozen[reference].all()
  assert not scan.searches.frozen.all()


@pytest.mark.parametrize("steps", [0, -1])
def test_bad_arguments(steps):
  with pytest.raises(UserError, match="steps_per_call must be at least 1"):
    k_arm.compile_search_steps(
      _network()[0], SETTINGS, sharding.make_mesh(), steps_per_call=steps
    )
