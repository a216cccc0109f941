import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference_neural_cleanse as reference

from bdjax import models, sharding
from bdjax.defenses import anomaly, neural_cleanse, trigger_search
from bdjax.defenses.cost_schedule import Settings, fresh, reschedule
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


def test_equals_reference_step_for_step():
  model = models.get("cnn", image_shape=SHAPE, num_classes=3, width=4)
  weights = Weights(*jax.jit(model.init)(KEY))
  images = jax.random.randint(KEY, (20, *SHAPE), 0, 256).astype(jnp.uint8)
  settings = Settings(
    steps=30,
    updates=3,
    batch_size=8,  # 24 images a step, so four come twice
    asr_threshold=0.9,
    init_cost=0.02,
    patience=2,
    early_stop_patience=3,
  )
  targets = jnp.arange(3, dtype=jnp.int32)
  # Two at a time, so that the last chunk is filled up.
  call = neural_cleanse.make_call(
    model, settings, _mesh(), class_batch=2, stretch=1
  )
  state = _init(3)
  starts = jax.device_get(state.variables)
  states = []
  for _ in range(settings.steps):
    state = call(weights, KEY, images, targets, state)
    states.append(jax.device_get(state))
  found = neural_cleanse.finish(state)

  gradient = reference.make_gradient(model, weights)
  rows_of = jax.jit(
    lambda target, step: trigger_search.batch_rows(
      jax.random.fold_in(KEY, target), step, 20, settings
    )
  )
  lengths = []
  for k in range(3):
    log, mask, pattern = reference.reverse(
      gradient,
      np.asarray(images),
      k,
      settings,
      [v[k] for v in starts],
      functools.partial(rows_of, k),
    )
    lengths.append(len(log))
    for step, now in zip(log, states, strict=False):
      assert now.schedule.cost[k] == pytest.approx(step.cost, rel=1e-5)
      assert now.best_norm[k] == pytest.approx(step.best_norm, 1e-4, 1e-4)
      if step.best_norm == step.norm:
        assert now.asr[k] == pytest.approx(step.asr)
    assert found.steps[k] == len(log)
    assert found.reached[k] == (mask is not None)
    if mask is not None:
      np.testing.assert_allclose(found.masks[k], mask, atol=1e-4)
      np.testing.assert_allclose(found.patterns[k], pattern, atol=1e-3)
      assert found.norms[k] == pytest.approx(mask.sum(), 1e-4, 1e-4)
  # One search never succeeds, one stops early, one goes on to the end.
  assert found.reached.tolist() == [False, True, True]
  assert lengths[1] < settings.steps == lengths[0] == lengths[2]
  assert len({float(x.schedule.cost[2]) for x in states}) > 5


def test_schedule_equals_authors_loop():
  settings = Settings(patience=3, early_stop_patience=4)
  rng = np.random.default_rng(0)
  runs, steps = 300, 60
  # Long rows of the same outcome, so that the patience is reached.
  change = rng.random((runs, steps)) < rng.random((runs, 1)) * 0.6
  asr = np.where(change.cumsum(1) % 2, 1.0, 0.5)
  norm = 50 - rng.random((runs, 1)) * np.arange(steps) + rng.random(asr.shape)

  def run(asr, norm):
    def step(carry, now):
      schedule, best, frozen = carry
      success = now[0] >= settings.asr_threshold
      new = jnp.where(success, jnp.minimum(best, now[1]), best)
      after, stop = reschedule(settings, schedule, success, best, new)
      out = after.cost, new, stop & ~frozen
      return (after, new, frozen | stop), out

    start = fresh(), jnp.float32(jnp.inf), jnp.bool_(False)
    return jax.lax.scan(step, start, (asr, norm))[1]

  costs, norms, stops = jax.jit(jax.vmap(run))(
    jnp.float32(asr), jnp.float32(norm)
  )
  ended, moved = 0, 0
  for i in range(runs):
    recorder = reference.Recorder(settings)
    for t in range(steps):
      _, stop = recorder.step(asr[i, t], norm[i, t])
      assert costs[i, t] == pytest.approx(recorder.cost, rel=1e-4)
      assert norms[i, t] == pytest.approx(recorder.best_norm, rel=1e-5)
      assert bool(stops[i, t]) == stop
      if stop:
        ended += 1
        break
    moved += recorder.cost_up_flag and recorder.cost_down_flag
  assert ended > 20 and moved > 50  # or the runs above check nothing


def test_schedule_by_hand():
  """Patience 2: the cost is set at the second success, and doubled one
  success later, as the authors count the second one twice."""
  settings = Settings(patience=2)
  schedule, inf = fresh(), jnp.float32(jnp.inf)
  costs = []
  for success in (True, True, True, True, True, False, False, False, False):
    args = jnp.bool_(success), inf, inf
    schedule, stop = reschedule(settings, schedule, *args)
    costs.append(float(schedule.cost))
    assert not stop
  root = 2**1.5
  want = [0, 1, 2, 2, 4, 4, 4 / root, 4 / root, 4 / root**2]
  np.testing.assert_allclose(costs, np.array(want) * 1e-3, rtol=1e-5)
  assert schedule.raised and schedule.lowered


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


def test_init():
  state = _init(30)
  trigger = trigger_search.trigger_of(state.variables)
  assert trigger.mask.shape == (30, 8, 8, 1)
  for values in trigger:
    values = np.asarray(values)
    assert 0 <= values.min() < 0.01 and 0.99 < values.max() <= 1
    quarters = np.histogram(values, 4, (0, 1))[0] / values.size
    np.testing.assert_allclose(quarters, 0.25, atol=0.04)
    assert len(np.unique(values[:, 0, 0, 0])) == 30
  assert np.isinf(state.best_norm).all() and not state.frozen.any()


def test_trigger_by_hand():
  variables = trigger_search.Variables(
    jnp.array([0.0, np.arctanh(0.5)]), jnp.array([-100.0, 100.0])
  )
  for form in (trigger_search.trigger_of, jax.vmap(trigger_search.trigger_of)):
    trigger = jax.jit(form)(variables)
    np.testing.assert_allclose(trigger.mask, [0.5, 0.75], rtol=1e-6)
    np.testing.assert_allclose(trigger.pattern, [0, 1], atol=1e-6)


@pytest.mark.parametrize("num,times", [(40, {0, 1}), (10, {2, 3})])
def test_batch_rows(num, times):
  settings = Settings(updates=3, batch_size=8)
  draw = functools.partial(
    trigger_search.batch_rows, num_images=num, settings=settings
  )
  keys = jax.random.split(KEY, 2)
  rows = np.asarray(jax.jit(jax.vmap(draw))(keys, jnp.array([0, 0])))
  assert rows.shape == (2, 3, 8)
  for one in rows:
    assert set(np.bincount(one.ravel(), minlength=num)) == times
  np.testing.assert_array_equal(rows[0], draw(keys[0], 0))
  assert (rows[0] != rows[1]).any()
  assert (rows[0] != draw(keys[0], 1)).any()


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
