import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bdjax import sharding
from bdjax.defenses import anomaly, neural_cleanse, trigger_search
from bdjax.defenses.cost_schedule import Settings
from bdjax.errors import UserError
from bdjax.models import Model, Weights

KEY = jax.random.key(5)
SHAPE = (8, 8, 1)
BACKDOOR, DEAF = 4, 6  # a class with a trigger; one that nothing leads to


def _linear(params, batch_stats, images, train):
  assert not train
  flat = images.reshape(images.shape[0], -1)
  return flat @ params["kernel"] + params["bias"][None], batch_stats


def _make_linear():
  """A classifier of bright rows whose smallest triggers are known.

  A clean image has one bright row. Class k sees row k, so that a trigger
  towards it takes about as many white pixels as a row's brightness sums up
  to: 4.8, and more where the class has less weight than its rivals.
  `BACKDOOR` sees one pixel, which with 60 hundredths of its weight beats the
  brightest row. `DEAF` never wins.
  """
  kernel = np.zeros((8, 8, 7), np.float32)
  weights = {0: 10, 1: 10.5, 2: 11, 3: 11.5, 5: 12}
  for k, weight in weights.items():
    kernel[k, :, k] = weight
  kernel[7, 7, BACKDOOR] = 100
  bias = np.zeros(7, np.float32)
  bias[DEAF] = -1000
  params = {"kernel": jnp.asarray(kernel.reshape(64, 7)), "bias": bias}
  images = np.random.default_rng(0).integers(0, 27, (96, *SHAPE))
  for i, image in enumerate(images):
    image[list(weights)[i % 5]] += 140
  images[:, 7, 7] = 0
  model = Model(init=None, apply=_linear, features=None, head=None)
  return model, Weights(params, {}), jnp.asarray(images, jnp.uint8)


LINEAR = _make_linear()
SETTINGS = Settings(
  steps=120, updates=4, batch_size=16, init_cost=1e-2, patience=3
)


def _mesh(devices=1):
  return sharding.make_mesh(jax.devices()[:devices])


@functools.cache
def _init(num, seed=5):
  fresh = jax.jit(lambda key: neural_cleanse.init(key, num, SHAPE))
  return fresh(jax.random.key(seed))


@functools.cache
def _call(devices, class_batch, stretch):
  return neural_cleanse.make_call(
    LINEAR[0],
    SETTINGS,
    _mesh(devices),
    class_batch=class_batch,
    stretch=stretch,
  )


def _search(steps, kind=(1, 1, 20), targets=range(7), state=None):
  _, weights, images = LINEAR
  targets = jnp.array(targets, jnp.int32)
  state = state or _init(len(targets))
  for _ in range(0, steps, kind[-1]):
    state = _call(*kind)(weights, KEY, images, targets, state)
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
    trigger = trigger_search.trigger_of(state.variables)
    return state._replace(variables=trigger, opt_state=None)

  jax.tree.map(
    lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-3, atol=1e-4),
    visible(a),
    visible(b),
  )


def test_finds_the_backdoor(found):
  result = neural_cleanse.finish(found)
  assert result.reached.tolist() == [True] * 6 + [False]
  assert np.isnan(result.norms[DEAF]) and result.asr[DEAF] == 0
  assert result.masks[DEAF].sum() > 0  # looked at in a figure, never counted
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
  assert anomaly.statistic(result.norms, index) == index[BACKDOOR] > 2


def test_frozen_searches_stay(found):
  assert found.frozen.all()
  stopped = found.steps < SETTINGS.steps
  assert stopped[:6].any()
  assert found.steps[DEAF] == SETTINGS.steps  # never reached, never stopped
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


def test_restarts_are_more_searches(early):
  first = _init(7)
  second = _init(7, 6)
  state = jax.tree.map(lambda *x: jnp.concatenate(x), first, second)
  twice = _search(40, targets=[*range(7)] * 2, state=state)
  norms = neural_cleanse.finish(twice).norms.reshape(2, 7)
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
    ({"steps": 0}, "steps is 0; take at least 1"),
    ({"updates": 0}, "updates"),
    ({"asr_threshold": 1.5}, "asr_threshold is 1.5; take more than 0 and"),
    ({"early_stop_threshold": 0.0}, "early_stop_threshold"),
    ({"init_cost": 0.0}, "init_cost is 0.0; take more than 0"),
    ({"cost_multiplier": 1.0}, "cost_multiplier is 1.0; take more than 1"),
    ({"class_batch": 0}, "class_batch is 0"),
    ({"stretch": 0}, "stretch is 0"),
  ],
)
def test_bad_settings(changes, message):
  sizes = {"class_batch": 1, "stretch": 1}
  sizes |= {k: v for k, v in changes.items() if k in sizes}
  rest = {k: v for k, v in changes.items() if k not in sizes}
  with pytest.raises(UserError, match=message) as error:
    neural_cleanse.make_call(LINEAR[0], Settings(**rest), _mesh(), **sizes)
  assert "\n" not in str(error.value)


def test_no_images():
  state = _init(7)
  targets = jnp.arange(7, dtype=jnp.int32)
  with pytest.raises(UserError, match="no images"):
    _call(1, 1, 20)(LINEAR[1], KEY, LINEAR[2][:0], targets, state)
