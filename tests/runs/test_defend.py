"""What all defences share when they run on a run, through STRIP and pruning."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest
from PIL import Image

from bdjax import metrics
from bdjax.defenses import DEFENSES
from bdjax.defenses.base import (
  Defender,
  DefenseMethod,
  SampleScores,
)
from bdjax.defenses.strip import StripSettings
from bdjax.errors import UserError
from bdjax.runs import DefenseConfig, defend, load_run
from bdjax.runs.combine import combine_defenses as combine
from bdjax.runs.defend import defend_run
from bdjax.runs.load import find_runs
from bdjax.settings import setting


def strip(path, *, settings=None, **kwargs):
  """Run a small STRIP on a run."""
  settings = {"frr": "0.05,0.1", "overlays": 5} | (settings or {})
  config = {"run": str(path), "eval_images": 60} | kwargs
  return defend("strip", StripSettings(**settings), DefenseConfig(**config))


def _read(path):
  return json.loads((path / "results.json").read_text())


@pytest.mark.figures
def test_a_defense_leaves_everything_behind(copied):
  path = copied / "badnets-digits-seeds" / "seed-1"
  before = sorted(p.name for p in path.iterdir())
  results = strip(path)
  stored = path / "defenses" / "strip"
  assert _read(stored) == results
  assert results["run"]["seed"] == 1
  assert results["run"]["attack"] == "badnets"
  assert results["run"]["name"] == "badnets-digits-seeds/seed-1"
  assert {"frr_at_0.05", "far_at_0.1", "auroc"} <= set(results["measured"])
  assert results["measured"]["frr_at_0.05"]["n"] == 60
  assert results["config"]["overlays"] == 5
  with Image.open(stored / "figures" / "scores.png") as image:
    image.load()
  after = sorted(p.name for p in path.iterdir())
  assert after == sorted([*before, "defenses"])


@pytest.mark.slow
def test_what_passes_a_detector_that_rejects_nothing_is_the_whole_attack(
  copied,
):
  path = copied / "badnets-digits-seeds" / "seed-1"
  results = strip(path, settings={"frr": "1e-30,0.5"}, eval_images=400)
  measured, own = results["measured"], _read(path)["measured"]
  assert measured["far_at_1e-30"]["mean"] == 1.0
  for name in ("mean", "n"):
    assert measured["attack_success_rate_at_1e-30"][name] == pytest.approx(
      own["attack_success_rate"][name]
    )
  half = measured["attack_success_rate_at_0.5"]["mean"]
  assert half <= measured["far_at_0.5"]["mean"] < 1.0


@pytest.mark.slow
def test_strip_calibrates_on_as_many_images_as_told(copied):
  path = copied / "clean-digits"
  counts = [
    strip(
      path,
      settings={"calibration": largest},
      output=str(copied / f"{largest}"),
    )["details"]["images_calibration"]
    for largest in (7, None)
  ]
  total = len(load_run(path).defender.labels)
  # A fifth of the defender's images is laid over the others.
  assert counts == [7, total - total // 5]


@pytest.mark.slow
def test_finished_is_not_repeated_and_other_settings_are_refused(
  copied, caplog
):
  caplog.set_level("INFO", "bdjax")
  path = copied / "clean-digits"
  results = strip(path)
  assert "auroc" not in results["measured"]
  assert strip(path) == results
  assert "is finished" in caplog.text
  four = {"overlays": 4}
  with pytest.raises(UserError, match="overlays 5 there, 4 here.*another outp"):
    strip(path, settings=four)
  assert strip(path, settings=four, output=str(copied / "mine")) != results
  assert (copied / "mine" / "results.json").exists()
  again = strip(path, settings=four, overwrite=True)
  assert again["config"]["overlays"] == 4


@pytest.mark.slow
def test_a_group_is_defended_run_by_run(copied):
  group = copied / "badnets-digits-seeds"
  results = strip(group)
  assert results["runs"] == ["seed-0", "seed-1"] and results["seeds"] == [0, 1]
  assert results["run"]["name"] == "badnets-digits-seeds"
  members = [_read(group / m / "defenses/strip") for m in results["runs"]]
  auroc = results["measured"]["auroc"]
  assert auroc["mean"] == pytest.approx(
    np.mean([m["measured"]["auroc"]["mean"] for m in members])
  )
  assert (auroc["n"], auroc["over"]) == (2, "seeds")
  assert _read(group / "defenses" / "strip") == results


@pytest.mark.slow
def test_a_checkpoint_from_elsewhere(copied):
  weights = copied / "clean-digits" / "checkpoints"
  moved = shutil.move(weights, copied / "theirs" / "weights")
  own = {"run": None, "checkpoint": str(moved), "dataset": "digits"}
  own |= {"model": "cnn", "width": 4}
  results = strip(None, **own)
  assert not results["run"]["has_attack"]
  path = copied / "theirs" / "weights-defended" / "defenses" / "strip"
  assert (path / "results.json").exists()
  with pytest.raises(UserError, match="another model or configuration"):
    strip(None, **own | {"width": 8, "overwrite": True})


def test_the_defender_has_no_test_data_and_the_evaluator_no_others(trained):
  run = load_run(trained / "clean-digits")
  fields = {*("model", "weights", "images", "labels", "class_names")}
  assert set(Defender._fields) == fields | {"mesh", "key"}
  splits = run.splits
  np.testing.assert_array_equal(run.defender.images, splits.defender.images)
  evaluator = run.evaluator(jax.random.key(0), limit=20)
  seen = evaluator.on_clean(lambda args, key, images: images, None)
  test = {image.tobytes() for image in splits.test.images}
  got = {np.round(i * 255).astype(np.uint8).tobytes() for i in seen}
  assert len(seen) == 20 and got <= test


def test_the_evaluator_agrees_with_the_runs_own_scores(trained):
  path = trained / "badnets-digits-seeds" / "seed-0"
  run = load_run(path)
  evaluator = run.evaluator(jax.random.key(0))
  got = evaluator.scores(run.defender.model, run.defender.weights)
  own = _read(path)["measured"]
  for name in ("clean_accuracy", "attack_success_rate", "robust_accuracy"):
    # The trigger of BadNets is fixed, and has one target: nothing is drawn.
    assert got[name].mean == pytest.approx(own[name]["mean"])
    assert got[name].n == own[name]["n"]


@dataclasses.dataclass(frozen=True)
class _Settings:
  largest: int = setting(3, "Poisoned pixels.")


def _bright_corner(defender, settings, directory=None):
  """Score each training image by its bottom right corner."""
  scores = defender.images[:, -3:, -3:].astype(np.float64).mean((1, 2, 3))
  return (SampleScores(scores, scores >= 255.0, {"seen": len(scores)}),)


def test_a_defense_that_inspects_the_training_set(copied):
  method = DefenseMethod(
    "corner", _Settings, _bright_corner, "none", needs_training_set=True
  )
  path = copied / "badnets-digits-seeds" / "seed-0"
  run = load_run(path)
  results = defend_run(method, _Settings(), DefenseConfig(), run, path)
  measured = results["measured"]
  # BadNets' white square is just what this looks for.
  assert measured["tpr"]["mean"] == 1.0 and measured["fpr"]["mean"] == 0.0
  assert measured["auroc"]["mean"] == 1.0
  poisoned = run.poisoned()
  assert measured["tpr"]["n"] == (poisoned.roles == 1).sum()
  assert results["details"]["seen"] == len(run.splits.train.labels)
  # A defence that sees the set does not see the roles.
  assert run.training_defender()._fields == ("defender", "images", "labels")


@pytest.mark.slow
def test_a_run_that_poisons_batches_leaves_no_training_set(tiny):
  from bdjax.runs import run as train
  from bdjax.runs.resolve import resolve

  config = tiny("badnets", poison="batch")
  train(config)
  loaded = load_run(resolve(config).directory)
  assert loaded.poisoned() is None
  with pytest.raises(UserError, match="poison must be dataset"):
    loaded.training_defender()


@pytest.mark.parametrize(
  "settings, kwargs, words",
  [
    ({}, {"run": None}, "run must be given, as runs/NAME, or checkpoint"),
    ({}, {"checkpoint": "x"}, "one of them"),
    ({}, {"run": None, "checkpoint": "x"}, "dataset must be given"),
    ({}, {"run": "nowhere"}, "nowhere must be the directory of a trained run"),
    ({}, {"run": "."}, "must hold checkpoints"),
    ({}, {"seed": -1}, "seed must be at least 0 and at most"),
    ({}, {"eval_images": 1}, "eval_images must be at least 2"),
    ({}, {"width": 4}, "width must be left out with run"),
    ({}, {"dataset": "mnist"}, "dataset must be left out with run"),
    ({}, {"null_runs": "clean-digits"}, "null_runs must be left out: strip"),
    ({"overlays": 0}, {}, "overlays must be at least 1"),
    ({"overlays": 500}, {}, r"overlays must be .*\d+"),
    ({"frr": "0.5,1"}, {}, "frr must be"),
    ({"frr": "x"}, {}, "frr must be"),
    ({"superimpose": "multiply"}, {}, "must be one of additive, clipped, bl"),
    ({"threshold": "quantile", "frr": "0.001"}, {}, "1000"),
  ],
)
def test_bad_input_is_one_line(copied, monkeypatch, settings, kwargs, words):
  monkeypatch.chdir(copied)
  with pytest.raises(UserError, match=words) as error:
    strip("clean-digits", settings=settings, **kwargs)
  assert "\n" not in str(error.value)
  if "null_runs" not in kwargs:
    assert not list(copied.rglob("defenses/**/*results.json*"))


def test_a_run_whose_checkpoints_are_gone(copied):
  shutil.rmtree(copied / "clean-digits" / "checkpoints")
  (copied / "clean-digits" / "checkpoints").mkdir()
  with pytest.raises(UserError, match="must hold a checkpoint"):
    strip(copied / "clean-digits")


@pytest.mark.slow
def test_results_of_another_network_are_not_used_for_this_one(copied):
  path = copied / "clean-digits"
  strip(path)
  shutil.rmtree(path / "checkpoints")
  other = copied / "badnets-digits-seeds" / "seed-0" / "checkpoints"
  shutil.copytree(other, path / "checkpoints")
  with pytest.raises(UserError, match="weights_crc32.*overwrite"):
    strip(path)


def test_a_run_that_another_run_left_is_none_of_the_group(copied):
  group = copied / "badnets-digits-seeds"
  shutil.copytree(group / "seed-0", group / "seed-0-pruning_aware")
  assert [p.name for p in find_runs(group)] == ["seed-0", "seed-1"]


def test_every_defense_has_a_citation_and_settings():
  for name, method in DEFENSES.items():
    assert method.name == name and method.citation
    assert dataclasses.is_dataclass(method.settings)


def test_combine_keeps_a_lone_run_and_pools_labels():
  def run(mean):
    score = metrics.proportion(mean, 3, "labels")._asdict()
    return {
      "measured": {"detection_rate": score, "norm": 2.0},
      "details": {},
      "seeds": [0],
      "seconds": {},
    }

  alone = combine([run(1.0)])["measured"]
  assert alone == run(1.0)["measured"]
  pooled = combine([run(1.0), run(1 / 3)])["measured"]["detection_rate"]
  expected = metrics.proportion(4 / 6, 6)
  assert pooled["mean"] == pytest.approx(expected.mean)
  assert pooled["low"] == pytest.approx(expected.low) and pooled["n"] == 6


def test_combine_by_hand():
  def run(seed, share, number):
    far = {"mean": share, "over": "test images", "unit": "share"}
    return {
      "measured": {"far": far, "norm": number, "flagged": [seed]},
      "details": {},
      "seeds": [seed],
      "seconds": {"defend": 1.0},
    }

  combined = combine([run(0, 0.5, 10.0), run(1, 0.7, 30.0)])
  far, norm = combined["measured"]["far"], combined["measured"]["norm"]
  assert far["mean"] == pytest.approx(0.6) and far["low"] == 0.0
  # Student's t with one degree of freedom: 12.7062; sd 14.1421, sqrt(2).
  assert norm["mean"] == 20
  assert norm["low"] == pytest.approx(20 - 12.7062 * 10, abs=1e-3)
  assert combined["measured"]["flagged"] == [[0], [1]]
  assert combined["seconds"] == {"defend": 2.0} and combined["seeds"] == [0, 1]
