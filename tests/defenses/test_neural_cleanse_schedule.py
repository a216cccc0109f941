import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference_neural_cleanse as reference

from bdjax.defenses.neural_cleanse import schedule as cost_schedule
from bdjax.defenses.neural_cleanse.schedule import SearchSettings


@pytest.mark.slow
def test_schedule_equals_authors_loop():
  settings = SearchSettings(patience=3, early_stop_patience=4)
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
      after, stop = cost_schedule.update(settings, schedule, success, best, new)
      out = after.cost, new, stop & ~frozen
      return (after, new, frozen | stop), out

    init = cost_schedule.init(), jnp.float32(jnp.inf), jnp.bool_(False)
    return jax.lax.scan(step, init, (asr, norm))[1]

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
  settings = SearchSettings(patience=2)
  schedule, inf = cost_schedule.init(), jnp.float32(jnp.inf)
  costs = []
  for success in (True, True, True, True, True, False, False, False, False):
    args = jnp.bool_(success), inf, inf
    schedule, stop = cost_schedule.update(settings, schedule, *args)
    costs.append(float(schedule.cost))
    assert not stop
  root = 2**1.5
  expected = [0, 1, 2, 2, 4, 4, 4 / root, 4 / root, 4 / root**2]
  np.testing.assert_allclose(costs, np.array(expected) * 1e-3, rtol=1e-5)
  assert schedule.raised and schedule.lowered
