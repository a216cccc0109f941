"""What the experiments on defences share, through the cheapest of them."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest
from PIL import Image

from bdjax import metrics
from bdjax.errors import UserError
from experiments import defending, strip
from experiments.common.program import make_keys
from experiments.defending.exam import Exam
from experiments.defending.runner import combine
from experiments.defending.subject import load, members

SMALL = {"frr": "0.05,0.1", "overlays": 5, "eval_images": 60}


def _strip(path, **kwargs):
  return strip.Config(run=str(path), **(SMALL | kwargs))


def test_a_defense_leaves_everything_behind(fresh):
  place = fresh / "badnets-digits-seeds" / "seed-1"
  before = sorted(p.name for p in place.iterdir())
  out = defending.run(strip.DEFENSE, _strip(place))
  stored = place / "defenses" / "strip"
  assert json.loads((stored / "results.json").read_text()) == out
  assert out["run"]["seed"] == 1 and out["run"]["experiment"] == "badnets"
  assert {"frr_at_0.05", "far_at_0.1", "auroc"} <= set(out["measured"])
  assert out["measured"]["frr_at_0.05"]["n"] == 60
  assert out["config"]["overlays"] == 5
  with Image.open(stored / "figures" / "entropies.png") as image:
    image.load()
  after = sorted(p.name for p in place.iterdir())
  assert after == sorted([*before, "defenses"])


def test_what_passes_a_guard_that_rejects_nothing_is_the_whole_attack(fresh):
  place = fresh / "badnets-digits-seeds" / "seed-1"
  config = _strip(place, frr="1e-30,0.5", eval_images=None)
  found = defending.run(strip.DEFENSE, config)["measured"]
  own = json.loads((place / "results.json").read_text())["measured"]
  assert found["far_at_1e-30"]["mean"] == 1.0
  for name in ("mean", "n"):
    assert found["attack_success_rate_at_1e-30"][name] == pytest.approx(
      own["attack_success_rate"][name]
    )
  half = found["attack_success_rate_at_0.5"]["mean"]
  assert half <= found["far_at_0.5"]["mean"] < 1.0


def test_strip_calibrates_on_as_many_images_as_told(fresh):
  place = fresh / "clean-digits"
  counts = [
    defending.run(
      strip.DEFENSE,
      _strip(place, calibration=most, output=str(fresh / f"{most}")),
    )["details"]["images_calibration"]
    for most in (7, None)
  ]
  total = len(load(_strip(place), place, print).defender.labels)
  # A fifth of the defender's images is laid over the others.
  assert counts == [7, total - total // 5]


def test_finished_is_not_repeated_and_other_flags_are_refused(fresh):
  lines, path = [], fresh / "clean-digits"
  out = defending.run(strip.DEFENSE, _strip(path))
  assert "auroc" not in out["measured"]
  again = defending.run(strip.DEFENSE, _strip(path), lines.append)
  assert again == out and "is finished" in lines[0]
  with pytest.raises(UserError, match="overlays 5 there, 4 here.*--output"):
    defending.run(strip.DEFENSE, _strip(path, overlays=4))
  other = _strip(path, overlays=4, output=str(fresh / "mine"))
  assert defending.run(strip.DEFENSE, other) != out
  assert (fresh / "mine" / "results.json").exists()
  out = defending.run(strip.DEFENSE, _strip(path, overlays=4, overwrite=True))
  assert out["config"]["overlays"] == 4


def test_a_group_is_defended_member_by_member(fresh):
  group = fresh / "badnets-digits-seeds"
  out = defending.run(strip.DEFENSE, _strip(group))
  assert out["members"] == ["seed-0", "seed-1"] and out["seeds"] == [0, 1]
  assert out["run"]["name"] == "badnets-digits-seeds"
  each = [
    json.loads((group / m / "defenses/strip/results.json").read_text())
    for m in out["members"]
  ]
  auroc = out["measured"]["auroc"]
  assert auroc["mean"] == pytest.approx(
    np.mean([m["measured"]["auroc"]["mean"] for m in each])
  )
  assert (auroc["n"], auroc["over"]) == (2, "seeds")
  stored = group / "defenses" / "strip" / "results.json"
  assert json.loads(stored.read_text()) == out


def test_a_checkpoint_from_elsewhere(fresh):
  weights = fresh / "clean-digits" / "checkpoints"
  moved = shutil.move(weights, fresh / "theirs" / "weights")
  config = strip.Config(
    checkpoint=str(moved), dataset="digits", model="cnn", width=4, **SMALL
  )
  out = defending.run(strip.DEFENSE, config)
  assert not out["run"]["attack"]
  place = fresh / "theirs" / "weights-defended" / "defenses" / "strip"
  assert (place / "results.json").exists()
  wide = dataclasses.replace(config, width=8, overwrite=True)
  with pytest.raises(UserError, match="another model or configuration"):
    defending.run(strip.DEFENSE, wide)


def test_the_defender_has_no_test_data_and_the_exam_no_defender_data(runs):
  config = _strip(runs / "clean-digits")
  subject = load(config, members(config)[0], print)
  fields = set(defending.Defender._fields)
  assert fields == {
    *("model", "weights", "images", "labels", "class_names", "mesh")
  }
  splits = subject.splits
  np.testing.assert_array_equal(subject.defender.images, splits.defender.images)
  exam = Exam(subject, jax.random.key(0), limit=20)
  seen = exam.clean(lambda args, key, images: images, None)
  test = {image.tobytes() for image in splits.test.images}
  got = {np.round(i * 255).astype(np.uint8).tobytes() for i in seen}
  assert len(seen) == 20 and got <= test


def test_the_exam_agrees_with_the_runs_own_scores(runs):
  place = runs / "badnets-digits-seeds" / "seed-0"
  subject = load(_strip(place), place, print)
  exam = Exam(subject, jax.random.key(0))
  got = exam.scores(subject.defender.model, subject.defender.weights)
  own = json.loads((place / "results.json").read_text())["measured"]
  for name in ("clean_accuracy", "attack_success_rate", "robust_accuracy"):
    # The trigger of BadNets is fixed, and has one target: nothing is drawn.
    assert got[name].mean == pytest.approx(own[name]["mean"])
    assert got[name].n == own[name]["n"]


@pytest.mark.parametrize(
  "kwargs, words",
  [
    ({"run": None}, "take --run=runs/NAME, or --checkpoint"),
    ({"checkpoint": "x"}, "one of them"),
    ({"run": None, "checkpoint": "x"}, "needs --dataset"),
    ({"run": "nowhere"}, "nowhere does not exist"),
    ({"run": "."}, "has no checkpoints"),
    ({"seed": -1}, "seed=-1 is out of range: take at least 0"),
    ({"eval_images": 1}, "eval_images=1 is out of range: take at least 2"),
    ({"overlays": 0}, "overlays=0 is out of range"),
    ({"width": 4}, "width goes with --checkpoint"),
    ({"dataset": "mnist"}, "dataset goes with --checkpoint"),
    ({"overlays": 500}, r"the defender has \d+ images.*take 1 to \d+"),
    ({"frr": "0.5,1"}, "1 is not between 0 and 1"),
    ({"frr": "x"}, "take shares with commas"),
    ({"superimpose": "multiply"}, "take one of additive, clipped, blend"),
    (
      {"threshold": "quantile", "frr": "0.001"},
      "takes 1000 calibration images",
    ),
  ],
)
def test_bad_input_is_one_line(fresh, monkeypatch, kwargs, words):
  monkeypatch.chdir(fresh)
  config = _strip("clean-digits")
  with pytest.raises(UserError, match=words) as error:
    defending.run(strip.DEFENSE, dataclasses.replace(config, **kwargs))
  assert "\n" not in str(error.value)
  assert not list(fresh.rglob("defenses/**/*results.json*"))


def test_a_run_whose_checkpoints_are_gone(fresh):
  shutil.rmtree(fresh / "clean-digits" / "checkpoints")
  (fresh / "clean-digits" / "checkpoints").mkdir()
  with pytest.raises(UserError, match="holds no checkpoint"):
    defending.run(strip.DEFENSE, _strip(fresh / "clean-digits"))


def test_results_of_another_network_are_not_taken_for_this_ones(fresh):
  place = fresh / "clean-digits"
  defending.run(strip.DEFENSE, _strip(place))
  shutil.rmtree(place / "checkpoints")
  other = fresh / "badnets-digits-seeds" / "seed-0" / "checkpoints"
  shutil.copytree(other, place / "checkpoints")
  with pytest.raises(UserError, match="weights_crc32.*--overwrite"):
    defending.run(strip.DEFENSE, _strip(place))


def test_randomness_is_apart_from_the_runs_and_from_other_members():
  seen = {
    jax.random.key_data(key).tobytes()
    for key in (
      *jax.random.split(defending.root_key(0, 0)),
      *jax.random.split(defending.root_key(0, 1)),
      *jax.random.split(defending.root_key(1, 0)),
      *make_keys(0),
      *make_keys(1),
    )
  }
  assert len(seen) == 14


def test_a_member_that_a_defense_left_is_none_of_the_group(fresh):
  group = fresh / "badnets-digits-seeds"
  shutil.copytree(group / "seed-0", group / "seed-0-pruning_aware")
  found = members(_strip(group))
  assert [p.name for p in found] == ["seed-0", "seed-1"]


def test_combine_keeps_a_lone_member_and_pools_labels():
  def member(mean):
    score = metrics.proportion(mean, 3)._replace(over="labels")._asdict()
    return {
      "measured": {"detection_rate": score, "norm": 2.0},
      "details": {},
      "seeds": [0],
      "seconds": {},
    }

  alone = combine([member(1.0)])["measured"]
  assert alone == member(1.0)["measured"]
  pooled = combine([member(1.0), member(1 / 3)])["measured"]["detection_rate"]
  want = metrics.proportion(4 / 6, 6)
  assert pooled["mean"] == pytest.approx(want.mean)
  assert pooled["low"] == pytest.approx(want.low) and pooled["n"] == 6


def test_combine_by_hand():
  def member(seed, share, number):
    return {
      "measured": {
        "far": {"mean": share, "over": "test images"},
        "norm": number,
        "flagged": [seed],
      },
      "details": {},
      "seeds": [seed],
      "seconds": {"defend": 1.0},
    }

  out = combine([member(0, 0.5, 10.0), member(1, 0.7, 30.0)])
  far, norm = out["measured"]["far"], out["measured"]["norm"]
  assert far["mean"] == pytest.approx(0.6) and far["low"] == 0.0
  # Student's t with one degree of freedom: 12.7062; sd 14.1421, sqrt(2).
  assert norm["mean"] == 20
  assert norm["low"] == pytest.approx(20 - 12.7062 * 10, abs=1e-3)
  assert out["measured"]["flagged"] == [[0], [1]]
  assert out["seconds"] == {"defend": 2.0} and out["seeds"] == [0, 1]
