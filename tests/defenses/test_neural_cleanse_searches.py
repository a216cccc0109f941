import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from bright_rows import BACKDOOR, IMAGES, MODEL, SHAPE, UNREACHABLE, WEIGHTS

from bdjax import batch_sizes, sharding
from bdjax.defenses.neural_cleanse import anomaly, search, searches
from bdjax.defenses.neural_cleanse.schedule import SearchSettings
from bdjax.errors import UserError

KEY = jax.random.key(5)
SETTINGS = SearchSettings(
  steps=120, updates=4, batch_size=16, init_cost=1e-2, patience=3
)


def _mesh(devices=1):
  return sharding.make_mesh(jax.devices()[:devices])


@functools.cache
def _init(num, seed=5):
  init = jax.jit(lambda key: searches.init(key, num, SHAPE))
  return init(jax.random.key(seed))


@functools.cache
def _call(devices, class_batch, steps_per_call):
  return searches.compile_search_steps(
    MODEL,
    SETTINGS,
    _mesh(devices),
    class_batch=class_batch,
    steps_per_call=steps_per_call,
  )


def _search(steps, kind=(1, 1, 20), targets=range(7), state=None):
  targets = jnp.array(targets, jnp.int32)
  state = state or _init(len(targets))
  for _ in range(0, steps, kind[-1]):
    state = _call(*kind)(WEIGHTS, KEY, IMAGES, targets, state)
  return jax.device_get(state)


@pytest.fixture(scope="module")
def found():
  return _search(SETTINGS.steps)


@pytest.fixture(scope="module")
def early():
  """The same after 20 of its steps."""
  return _search(20)


def _assert_close(a, b):
  """Equal states but for rounding.

  Triggers and not variables: a saturated tanh magnifies rounding.
  """

  def visible(state):
    trigger = search.to_trigger(state.variables)
    return state._replace(variables=trigger, opt_state=None)

  jax.tree.map(
    lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-3, atol=1e-4),
    visible(a),
    visible(b),
  )


@pytest.mark.slow
def test_finds_the_backdoor(found):
  result = searches.finish(found)
  assert result.reached.tolist() == [True] * 6 + [False]
  assert np.isnan(result.norms[UNREACHABLE]) and result.asr[UNREACHABLE] == 0
  assert (
    result.masks[UNREACHABLE].sum() > 0
  )  # looked at in a figure, never counted
  np.testing.assert_allclose(
    result.norms[:6], result.masks[:6].sum((1, 2, 3)), rtol=1e-5
  )
  # A bright row sums up to 4.8; its class's weight is 12, or 11.5 for 12's.
  least = 4.8 * np.array([12, 12, 12, 12, 12, 11.5])
  least /= np.array([10, 10.5, 11, 11.5, 100, 12])
  np.testing.assert_allclose(found.best_norm[:6], least, rtol=0.1)
  np.testing.assert_allclose(result.norms[:6], least, rtol=0.15)
  mask = result.masks[BACKDOOR, ..., 0]
  assert np.unravel_index(mask.argmax(), mask.shape) == (7, 7)
  assert result.patterns[BACKDOOR, 7, 7, 0] > 0.9
  assert (result.asr[:6] >= 0.99).all()
  index = anomaly.anomaly_index(result.norms, result.reached)
  assert anomaly.flagged(result.norms, index) == [BACKDOOR]
  assert anomaly.max_index(result.norms, index) == index[BACKDOOR] > 2


def test_frozen_searches_stay(found):
  assert found.frozen.all()
  stopped = found.steps < SETTINGS.steps
  assert stopped[:6].any()
  assert (
    found.steps[UNREACHABLE] == SETTINGS.steps
  )  # never reached, never stopped
  schedule = jax.tree.map(lambda x: x[stopped], found.schedule)
  assert (schedule.stalled >= SETTINGS.early_stop_patience).all()
  assert schedule.raised.all() and schedule.lowered.all()
  again = _search(20, state=found)
  jax.tree.map(np.testing.assert_array_equal, found, again)


def test_frozen_among_running(early):
  """Vectorised, where no branch can leave one out."""
  assert not early.frozen.any()
  frozen = early._replace(frozen=np.arange(7) == 2)
  after = _search(20, (1, 7, 10), state=frozen)
  assert (after.steps > 20).tolist() == [True] * 2 + [False] + [True] * 4
  one = functools.partial(jax.tree.map, lambda x: x[2])
  jax.tree.map(np.testing.assert_array_equal, one(frozen), one(after))


def test_stopped_and_resumed_equals_unbroken(early, found):
  resumed = _search(SETTINGS.steps - 20, state=early)
  jax.tree.map(np.testing.assert_array_equal, found, resumed)


@pytest.mark.parametrize("kind", [(1, 7, 10), (2, 2, 20)])
def test_vectorised_equals_one_at_a_time(early, kind):
  """On one device in shorter calls; on two, where 7 are filled up to 8."""
  _assert_close(early, _search(20, kind))


@pytest.mark.slow
def test_restarts_are_more_searches(early):
  first = _init(7)
  second = _init(7, 6)
  state = jax.tree.map(lambda *x: jnp.concatenate(x), first, second)
  twice = _search(40, targets=[*range(7)] * 2, state=state)
  norms = searches.finish(twice).norms.reshape(2, 7)
  assert (np.nanargmin(norms, 1) == BACKDOOR).all()
  assert (norms[0, :6] != norms[1, :6]).all()
  # From the same start the images still differ, and so does the search.
  state = jax.tree.map(lambda x: jnp.concatenate([x, x]), first)
  twice = _search(20, targets=[*range(7)] * 2, state=state)
  _assert_close(early, jax.tree.map(lambda x: x[:7], twice))
  masks = twice.variables.mask
  assert np.abs(masks[7:] - masks[:7]).max((1, 2, 3)).min() > 0.1


@pytest.mark.parametrize(
  "changes,message",
  [
    ({"steps": 0}, "steps must be at least 1"),
    ({"updates": 0}, "updates"),
    ({"asr_threshold": 1.5}, "asr_threshold must be more than 0 and at most 1"),
    ({"early_stop_threshold": 0.0}, "early_stop_threshold"),
    ({"init_cost": 0.0}, "init_cost must be more than 0"),
    ({"cost_multiplier": 1.0}, "cost_multiplier must be more than 1"),
    ({"class_batch": 0}, "class_batch must be at least 1"),
    ({"steps_per_call": 0}, "steps_per_call must be at least 1"),
  ],
)
def test_bad_settings(changes, message):
  sizes = {"class_batch": 1, "steps_per_call": 1}
  sizes |= {k: v for k, v in changes.items() if k in sizes}
  rest = {k: v for k, v in changes.items() if k not in sizes}
  with pytest.raises(UserError, match=message) as error:
    searches.compile_search_steps(
      MODEL, SearchSettings(**rest), _mesh(), **sizes
    )
  assert "\n" not in str(error.value)


def test_no_images():
  state = _init(7)
  targets = jnp.arange(7, dtype=jnp.int32)
  with pytest.raises(UserError, match="images must not be empty"):
    _call(1, 1, 20)(WEIGHTS, KEY, IMAGES[:0], targets, state)


def test_max_searches_follows_memory(monkeypatch):
  assert searches.max_searches((28, 28, 1), 32) == 1
  monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
  for gib, side, expected in ((16, 32, 16), (0.1, 1024, 1)):
    monkeypatch.setattr(
      batch_sizes, "device_bytes", lambda gib=gib: int(gib * 2**30)
    )
    assert searches.max_searches((side, side, 3), 32) == expected
