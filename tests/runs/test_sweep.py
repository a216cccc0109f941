import dataclasses
import json

import jax
import numpy as np
import pytest
from PIL import Image
from tiny_runs import replace_settings

from bdjax import data
from bdjax.attacks import ATTACKS
from bdjax.checkpoints import Checkpoints
from bdjax.errors import UserError
from bdjax.runs import run
from bdjax.runs.dry_run import describe
from bdjax.runs.resolve import resolve
from bdjax.runs.setup import build, build_all
from bdjax.runs.sweep import expand, parse_axis, sweep_fields


def _read(directory, name="results.json"):
  return json.loads((directory / name).read_text())


def _states(config):
  splits = data.load("digits")
  setup = build(config, splits)
  carry = jax.eval_shape(setup.init, jax.random.key(0), splits.train.images)
  path = config.directory / "checkpoints"
  with Checkpoints(path, read_only=True) as checkpoints:
    return checkpoints.restore(carry.classifier, carry.generator)


def _assert_equal(member, alone):
  first, second = _states(member), _states(alone)
  assert first.step == second.step > 0
  for got, expected in zip(first[1:3], second[1:3], strict=True):
    jax.tree.map(np.testing.assert_array_equal, got, expected)
  first, second = _read(member.directory), _read(alone.directory)
  for name in ("config", "measured", "details"):
    assert first[name] == second[name]


@pytest.mark.slow
@pytest.mark.parametrize("attack", ["ban", "badnets"])
def test_swept_runs_equal_runs_alone_bit_for_bit(tiny, attack):
  axes = (("poison_rate", (0.1, 0.5)), ("target_labels", ("2", "0")))
  config = tiny(attack, axes=axes, seed=4)
  run(config)
  settings = expand(config).settings
  assert [setting.run_name for setting in settings] == [
    "rate-0.1-target-2",
    "rate-0.1-target-0",
    "rate-0.5-target-2",
    "rate-0.5-target-0",
  ]
  for setting in settings[1:3]:
    alone = replace_settings(
      tiny(attack, seed=4, run_name=f"alone-{setting.run_name}"),
      poison_rate=setting.settings.poison_rate,
      target_labels=setting.settings.target_labels,
    )
    run(alone)
    _assert_equal(setting, resolve(alone))
  weights = {
    np.asarray(jax.tree.leaves(_states(s).state.params)[0]).tobytes()
    for s in settings
  }
  assert len(weights) == 4


def test_seeds_equal_runs_alone_bit_for_bit(tiny):
  group = run(tiny("random_backdoor", seeds=2, seed=4))
  directory = resolve(tiny("random_backdoor", seeds=2)).directory
  own = {"runs_dir": str(directory), "run_name": "seed-5"}
  alone = tiny("random_backdoor", seed=5, run_name="alone")
  run(alone)
  _assert_equal(
    resolve(tiny("random_backdoor", seed=5, **own)), resolve(alone)
  )
  members = [_read(directory / f"seed-{seed}") for seed in (4, 5)]
  assert members[0]["measured"] != members[1]["measured"]
  score = group["measured"]["clean_accuracy"]
  means = [m["measured"]["clean_accuracy"]["mean"] for m in members]
  assert score["mean"] == pytest.approx(np.mean(means))
  assert (score["n"], score["over"]) == (2, "seeds")
  assert group["seeds"] == [4, 5]


@pytest.mark.slow
def test_a_sweep_over_seeds_leaves_everything_behind(tiny):
  config = tiny("badnets", axes=(("trigger_size", (2, 3)),), seeds=2)
  results = run(config)
  plan = expand(config)
  assert plan.config.directory.name == "badnets-digits-sizes-seeds"
  assert _read(plan.config.directory) == results
  assert results["runs"] == ["size-2", "size-3"]
  assert results["config"]["swept"] == ["trigger_size"]
  assert results["config"]["trigger_size"] is None
  for setting, row in zip(plan.settings, results["settings"], strict=True):
    group = _read(setting.directory)
    assert row["measured"] == group["measured"]
    assert row["trigger_size"] == group["config"]["trigger_size"]
    assert row["seeds"] == group["seeds"] == [0, 1]
  with Image.open(plan.config.directory / "figures" / "sweep.png") as image:
    image.load()
    assert min(image.size) > 100


@pytest.mark.slow
def test_a_sweep_keeps_what_is_there_and_grows(tiny, caplog):
  caplog.set_level("INFO", "bdjax")
  first = run(tiny("badnets", axes=(("poison_rate", (0.1, 0.3)),)))
  caplog.clear()
  rates = (0.3, 0.5, 0.1)
  more = run(tiny("badnets", axes=(("poison_rate", rates),)))
  assert caplog.text.count("is finished") == 2
  assert [row["poison_rate"] for row in more["settings"]] == list(rates)
  for old in first["settings"]:
    assert old in more["settings"]
  name = resolve(tiny("badnets")).run_name
  with pytest.raises(UserError, match="swept .*poison_rate.* there"):
    axes = (("trigger_size", (2, 3)),)
    run(tiny("badnets", axes=axes, run_name=f"{name}-rates"))


@pytest.mark.slow
def test_a_group_is_compared_with_the_clean_runs_of_its_seeds(tiny):
  run(tiny("clean", seeds=2))
  results = run(tiny("badnets", seeds=2))
  clean = _read(resolve(tiny("clean", seeds=2)).directory)
  benchmark = results["measured"]["benchmark_accuracy"]
  assert benchmark == clean["measured"]["clean_accuracy"]
  assert results["difference"]["n"] == 2


def test_programs_are_shared_where_they_are_the_same(tiny):
  axes = (("poison_rate", (0.1, 0.2)), ("trigger_size", (2, 3)))
  splits = data.load("digits")

  def setups(attack, **kwargs):
    plan = expand(tiny(attack, **({"axes": axes} | kwargs)))
    return build_all(plan.settings, splits)

  a, b, c, d = setups("badnets", poison="batch")
  assert a.call is c.call and b.call is d.call and a.call is not b.call
  assert [float(s.setting[0]) for s in (a, c)] == pytest.approx([0.1, 0.2])
  # A poisoned set is data: one program trains on all of them.
  a, b, c, d = setups("badnets")
  assert a.call is b.call is c.call is d.call
  assert a.predictors is c.predictors and a.predictors is not b.predictors
  # Rows of a fixed number are part of the program.
  a, b = setups("wanet", axes=(("poison_rate", (0.1, 0.2)),))
  assert a.call is not b.call


@pytest.mark.parametrize("attack", sorted(ATTACKS))
def test_every_attack_can_be_swept(attack):
  names = {field.name for field in sweep_fields(ATTACKS[attack])}
  assert {"poison_rate", "target_labels"} <= names


def test_a_newly_swept_setting_is_another_program(tiny):
  axes = (("alpha", (0.1, 0.3)),)
  plan = expand(tiny("blended", axes=axes, poison="batch"))
  assert plan.config.run_name == "blended-digits-batch-alphas"
  a, b = build_all(plan.settings, data.load("digits"))
  assert a.call is not b.call


@pytest.mark.parametrize(
  "name, text, words",
  [
    ("poison_rate", "0.1,often", "poison_rates must be numbers with commas"),
    ("poison_rate", "0.1,0.2,0.10", "poison_rates must differ"),
    ("poison_rate", "0.1,1.5", "poison_rates=.*must be .*at most 1"),
    ("poison_rate", "nan", "poison_rate must be finite"),
    ("trigger_size", "3,0", "trigger_size must be at least 1"),
    ("trigger_size", "3,2.5", "must be numbers with commas"),
  ],
)
def test_bad_axes(name, text, words):
  fields = {f.name: f for f in dataclasses.fields(ATTACKS["ban"].settings)}
  with pytest.raises(UserError, match=words):
    parse_axis(fields[name], text)


def test_what_is_swept_must_not_be_given_too(tiny):
  axes = (("poison_rate", (0.1,)),)
  with pytest.raises(UserError, match="poison_rate must not be given"):
    run(tiny("ban", axes=axes, poison_rate=0.1))


def test_dry_run_names_the_runs(tiny):
  axes = (("poison_rate", (0.1, 0.3)),)
  text = describe(tiny("ban", axes=axes, seeds=2))
  assert "runs: 4" in text
  for member in ("rate-0.1/seed-0", "rate-0.3/seed-1"):
    assert f"ban-digits-rates-seeds/{member}\n" in f"{text}\n"
