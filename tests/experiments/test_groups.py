import json
import threading

import jax
import numpy as np
import pytest
from PIL import Image

from bdjax import data, sharding
from bdjax.checkpoints import Checkpoints
from bdjax.errors import UserError
from experiments.common import population, run
from experiments.common.defaults import resolve
from experiments.common.program import build, build_all
from experiments.common.sweep import expand
from experiments.common.together import Together
from experiments.common.train import Stopped


@pytest.fixture
def one_device(monkeypatch):
  """The tests' CPU has four devices; a user's has one, and trains two runs."""
  mesh = sharding.make_mesh(jax.devices()[:1])
  monkeypatch.setattr(sharding, "make_mesh", lambda: mesh)


def _read(directory, name="results.json"):
  return json.loads((directory / name).read_text())


def _states(config):
  splits = data.load("digits")
  program = build(config, splits)
  carry = jax.eval_shape(program.create, jax.random.key(0), splits.train.images)
  place = config.directory / "checkpoints"
  with Checkpoints(place, read_only=True) as checkpoints:
    return checkpoints.restore(carry.state, carry.generator)


def _equal(member, alone):
  one, other = _states(member), _states(alone)
  assert one.step == other.step > 0
  for got, want in zip(one[1:3], other[1:3], strict=True):
    jax.tree.map(np.testing.assert_array_equal, got, want)
  one, other = _read(member.directory), _read(alone.directory)
  for name in ("config", "measured", "details"):
    assert one[name] == other[name]


def _group(tiny, **kwargs):
  whole, settings = expand(tiny("ban", **kwargs))
  return whole, settings, run(tiny("ban", **kwargs))


def test_swept_members_equal_runs_alone_bit_for_bit(tiny, one_device):
  whole, settings, _ = _group(
    tiny, poison_rates="0.1,0.5", target_sweep="2,0", seed=4
  )
  assert [setting.run_name for setting in settings] == [
    "rate-0.1-target-2",
    "rate-0.1-target-0",
    "rate-0.5-target-2",
    "rate-0.5-target-0",
  ]
  for setting in settings:
    alone = tiny(
      "ban",
      poison_rate=setting.poison_rate,
      target_labels=setting.target_labels,
      seed=4,
      run_name=f"alone-{setting.run_name}",
    )
    run(alone)
    _equal(setting, resolve(alone))
  weights = [
    jax.tree.leaves(_states(setting).state.params)[0] for setting in settings
  ]
  assert len({weight.tobytes() for weight in map(np.asarray, weights)}) == 4


def test_seeds_two_at_a_time_equal_runs_alone_bit_for_bit(tiny, one_device):
  _, (group,), _ = _group(tiny, seeds=3)
  for seed in range(3):
    alone = tiny("ban", seed=seed, run_name=f"alone-{seed}")
    run(alone)
    place = {"runs_dir": str(group.directory), "run_name": f"seed-{seed}"}
    _equal(resolve(tiny("ban", seed=seed, **place)), resolve(alone))


def test_a_sweep_over_seeds_leaves_everything_behind(tiny):
  whole, settings, out = _group(tiny, trigger_sizes="2,3", seeds=2)
  assert whole.directory.name == "ban-digits-sizes-seeds"
  assert _read(whole.directory) == out
  assert out["members"] == ["size-2", "size-3"]
  assert out["config"]["swept"] == ["trigger_size"]
  assert out["config"]["trigger_size"] is None
  for setting, row in zip(settings, out["settings"], strict=True):
    group = _read(setting.directory)
    assert row["measured"] == group["measured"]
    assert row["trigger_size"] == group["config"]["trigger_size"]
    assert row["seeds"] == group["seeds"] == [0, 1]
    members = [
      _read(setting.directory / name)["measured"] for name in group["members"]
    ]
    for name, score in row["measured"].items():
      means = [member[name]["mean"] for member in members]
      assert score["mean"] == pytest.approx(np.mean(means))
      assert (score["n"], score["over"]) == (2, "seeds")
  with Image.open(whole.directory / "figures" / "sweep.png") as image:
    image.load()
    assert min(image.size) > 100


def test_a_sweep_takes_what_is_there_and_grows(tiny):
  first = run(tiny("badnets", poison_rates="0.1,0.3"))
  lines = []
  more = run(tiny("badnets", poison_rates="0.3,0.5,0.1"), lines.append)
  assert sum("is finished" in line for line in lines) == 2
  rates = [row["poison_rate"] for row in more["settings"]]
  assert rates == [0.3, 0.5, 0.1]
  for old in first["settings"]:
    assert old in more["settings"]
  name = resolve(tiny("badnets")).run_name
  with pytest.raises(UserError, match="swept .*poison_rate.* there"):
    sizes = {"trigger_sizes": "2,3", "run_name": f"{name}-rates"}
    run(tiny("badnets", **sizes))


def test_the_benchmark_of_a_sweep_is_trained_once(tiny):
  lines = []
  config = tiny("badnets", poison_rates="0.1,0.3", benchmark="auto")
  out = run(config, lines.append)
  assert sum("training the clean benchmark" in line for line in lines) == 1
  one, two = (row["measured"]["benchmark_accuracy"] for row in out["settings"])
  assert one == two
  assert all("difference" in row for row in out["settings"])


def test_one_program_serves_all_rates_and_targets_of_a_size(tiny):
  _, settings = expand(
    tiny("badnets", poison_rates="0.1,0.2", trigger_sizes="2,3")
  )
  a, b, c, d = build_all(settings, data.load("digits"))
  assert a.call is c.call and b.call is d.call and a.call is not b.call
  assert [float(p.setting[0]) for p in (a, c)] == pytest.approx([0.1, 0.2])


def test_dry_run_names_the_members(tiny, capsys):
  run(tiny("ban", poison_rates="0.1,0.3", seeds=2, dry_run=True))
  text = capsys.readouterr().out
  assert "members: 4, 1 at a time" in text
  for member in ("rate-0.1/seed-0", "rate-0.3/seed-1"):
    assert f"ban-digits-rates-seeds/{member}\n" in f"{text}\n"


def test_at_once_is_chosen_in_one_place(tiny, one_device):
  splits = data.load("digits")
  resolved = resolve(tiny("clean"))
  program = build(resolved, splits)
  assert population.at_once(resolved, program, splits) == 2  # on CPU
  asked = resolve(tiny("clean", at_once=3))
  assert population.at_once(asked, program, splits) == 3
  mapped = resolve(tiny("clean", vmap=True))
  assert population.at_once(mapped, program, splits) > 100  # of 100 kB each


def test_vmapped_members_equal_runs_alone_up_to_rounding(tiny):
  rates = {"poison_rates": "0.1,0.5,0.3", "vmap": True, "at_once": 2}
  _, settings, out = _group(tiny, seed=4, **rates)
  for setting in settings:
    alone = tiny(
      "ban",
      poison_rate=setting.poison_rate,
      seed=4,
      run_name=f"alone-{setting.run_name}",
    )
    run(alone)
    one, other = _states(setting), _states(resolve(alone))
    assert one.step == other.step == 10
    for got, want in zip(one[1:3], other[1:3], strict=True):
      jax.tree.map(
        lambda g, w: np.testing.assert_allclose(g, w, rtol=1e-2, atol=1e-4),
        got,
        want,
      )


def test_members_that_leave_are_not_waited_for():
  seen = []

  def call(members):
    seen.append(len(members))
    return tuple(x + 1 for (x,) in members)

  together = Together(call, 3)
  counts = {0: 4, 1: 2, 2: 0}  # calls of each
  found = {}

  def member(number):
    x = 10 * number
    for _ in range(counts[number]):
      x = together.seat(number)(x)
    found[number] = x
    together.leave(number)

  threads = [threading.Thread(target=member, args=(i,)) for i in counts]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join(10)
  assert found == {0: 4, 1: 12, 2: 20}
  assert seen == [2, 2, 1, 1]


def test_an_error_of_the_common_program_is_every_members():
  def call(members):
    raise RuntimeError("no memory")

  together = Together(call, 1)
  with pytest.raises(RuntimeError, match="no memory"):
    together.seat(0)(1)


def test_jobs_keep_their_order_and_run_so_many_at_a_time():
  barrier = threading.Barrier(2, timeout=10)

  def job(i):
    def call(received):
      assert received == []
      barrier.wait()  # passed by two at a time only
      return i

    return call

  assert population.run_all([job(i) for i in range(4)], 2) == [0, 1, 2, 3]


def test_a_member_that_fails_stops_the_others():
  begun = threading.Event()

  def diverges(received):
    begun.wait(10)
    raise UserError("the loss is nan")

  def trains(received):
    begun.set()
    while not received:
      pass
    raise Stopped(received[0])

  def later(received):
    raise AssertionError("begun after a failure")

  with pytest.raises(UserError, match="nan"):
    population.run_all([trains, diverges, later], 2)
