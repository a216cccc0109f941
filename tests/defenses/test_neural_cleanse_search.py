import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference_neural_cleanse as reference

from bdjax import models, sharding
from bdjax.defenses.neural_cleanse import search, searches
from bdjax.defenses.neural_cleanse.schedule import SearchSettings
from bdjax.models import Weights

KEY = jax.random.key(5)
SHAPE = (8, 8, 1)


def _init(num):
  return jax.jit(lambda key: searches.init(key, num, SHAPE))(KEY)


@pytest.mark.slow
def test_equals_reference_step_for_step():
  model = models.get("cnn", image_shape=SHAPE, num_classes=3, width=4)
  weights = Weights(*jax.jit(model.init)(KEY))
  images = jax.random.randint(KEY, (20, *SHAPE), 0, 256).astype(jnp.uint8)
  settings = SearchSettings(
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
  call = searches.compile_search_steps(
    model,
    settings,
    sharding.make_mesh(jax.devices()[:1]),
    class_batch=2,
    steps_per_call=1,
  )
  state = _init(3)
  inits = jax.device_get(state.variables)
  states = []
  for _ in range(settings.steps):
    state = call(weights, KEY, images, targets, state)
    states.append(jax.device_get(state))
  found = searches.finish(state)

  gradient = reference.make_gradient(model, weights)
  rows_of = jax.jit(
    lambda target, step: search.draw_rows(
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
      [v[k] for v in inits],
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


def test_init():
  state = _init(30)
  trigger = search.to_trigger(state.variables)
  assert trigger.mask.shape == (30, 8, 8, 1)
  for values in trigger:
    values = np.asarray(values)
    assert 0 <= values.min() < 0.01 and 0.99 < values.max() <= 1
    quarters = np.histogram(values, 4, (0, 1))[0] / values.size
    np.testing.assert_allclose(quarters, 0.25, atol=0.04)
    assert len(np.unique(values[:, 0, 0, 0])) == 30
  assert np.isinf(state.best_norm).all() and not state.frozen.any()


def test_trigger_by_hand():
  variables = search.Variables(
    jnp.array([0.0, np.arctanh(0.5)]), jnp.array([-100.0, 100.0])
  )
  for form in (search.to_trigger, jax.vmap(search.to_trigger)):
    trigger = jax.jit(form)(variables)
    np.testing.assert_allclose(trigger.mask, [0.5, 0.75], rtol=1e-6)
    np.testing.assert_allclose(trigger.pattern, [0, 1], atol=1e-6)


@pytest.mark.parametrize("num,times", [(40, {0, 1}), (10, {2, 3})])
def test_draw_rows(num, times):
  settings = SearchSettings(updates=3, batch_size=8)
  draw = functools.partial(search.draw_rows, num_images=num, settings=settings)
  keys = jax.random.split(KEY, 2)
  rows = np.asarray(jax.jit(jax.vmap(draw))(keys, jnp.array([0, 0])))
  assert rows.shape == (2, 3, 8)
  for one in rows:
    assert set(np.bincount(one.ravel(), minlength=num)) == times
  np.testing.assert_array_equal(rows[0], draw(keys[0], 0))
  assert (rows[0] != rows[1]).any()
  assert (rows[0] != draw(keys[0], 1)).any()
