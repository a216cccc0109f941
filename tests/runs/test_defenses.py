"""Every defence against a tiny backdoored run, as its script runs it."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from PIL import Image

from bdjax.errors import UserError
from experiments import (
  defending,
  fine_pruning,
  goodnet,
  neural_cleanse,
  pruning,
  pruning_aware,
  strip_fine_pruning,
)
from experiments.common.train import Stopped
from experiments.defending.defense import Space
from experiments.defending.exam import Exam
from experiments.defending.subject import load

SEARCH = {"steps": 15, "updates": 4, "patience": 2, "asr_threshold": 0.5}


@pytest.fixture
def place(fresh):
  return fresh / "badnets-digits-seeds" / "seed-0"


def _figures(place, defense):
  folder = place / "defenses" / defense / "figures"
  for path in folder.iterdir():
    with Image.open(path) as image:
      image.load()
  return {path.stem for path in folder.iterdir()}


def test_pruning(place):
  config = pruning.Config(run=str(place))
  out = defending.run(pruning.DEFENSE, config)
  details, measured = out["details"], out["measured"]
  assert details["layer"] == "conv_2" and len(details["order"]) == 2
  own = json.loads((place / "results.json").read_text())["measured"]
  for score in ("clean_accuracy", "attack_success_rate"):
    assert measured[f"{score}_at_0"]["mean"] == own[score]["mean"]
  for drop in ("0.02", "0.04", "0.1"):
    count = measured[f"channels_at_{drop}"]
    for score in ("clean accuracy", "attack success rate"):
      name = f"{score.replace(' ', '_')}_at_{drop}"
      assert measured[name]["mean"] == pytest.approx(details[score][count])
  saved = place / "defenses/pruning/checkpoints/drop-0.1"
  again = pruning.Config(
    checkpoint=str(saved), dataset="digits", model="cnn", width=4
  )
  loaded = defending.run(pruning.DEFENSE, again)["measured"]
  assert loaded["clean_accuracy_at_0"] == measured["clean_accuracy_at_0.1"]
  assert _figures(place, "pruning") == {"pruning"}


def test_goodnet_answers_where_both_agree(place):
  config = goodnet.Config(run=str(place), drops="0.1")
  measured = defending.run(goodnet.DEFENSE, config)["measured"]
  alone = defending.run(pruning.DEFENSE, pruning.Config(run=str(place)))
  for score in ("clean_accuracy", "attack_success_rate"):
    both = measured[f"{score}_at_0.1"]["mean"]
    assert both <= alone["measured"][f"{score}_at_0.1"]["mean"]
    assert both <= alone["measured"][f"{score}_at_0"]["mean"]
  covered = measured["clean_coverage_at_0.1"]["mean"]
  assert measured["clean_accuracy_at_0.1"]["mean"] <= covered


def test_fine_pruning_by_activation(place):
  config = fine_pruning.Config(run=str(place), epochs=2)
  out = defending.run(fine_pruning.DEFENSE, config)
  names = [row["name"] for row in out["details"]["networks"]]
  assert names == ["before", "pruned", "repaired"]
  assert _figures(place, "fine_pruning") == {"rounds"}


def test_fine_pruning_by_value_goes_on_where_it_was_stopped(place, tmp_path):
  kwargs = {"run": str(place), "by": "value", "step": 0.2, "drop": 0.9}
  whole = fine_pruning.Config(**kwargs, output=str(tmp_path / "whole"))
  want = defending.run(fine_pruning.DEFENSE, whole)
  assert len(want["details"]["networks"]) == 6  # before, 4 rounds, repaired
  stopped = fine_pruning.Config(**kwargs, output=str(tmp_path / "stopped"))
  with pytest.raises(Stopped):
    defending.run(_stopping(fine_pruning.DEFENSE, 2), stopped)
  got = defending.run(fine_pruning.DEFENSE, stopped)
  assert got["details"] == want["details"]
  assert got["measured"] == want["measured"]


def _stopping(defense, count):
  """The defence with a progress bar that is interrupted after `count`."""

  class Interrupted(Space):
    def progress(self, items, unit):
      for number, item in enumerate(items):
        if number == count:
          raise Stopped(15)
        yield item

  def defend(defender, config, space):
    return defense.defend(defender, config, Interrupted(*space))

  return defense._replace(defend=defend)


def test_neural_cleanse_goes_on_where_it_was_stopped(place, tmp_path):
  kwargs = {"run": str(place), **SEARCH, "unlearn_epochs": 1}
  whole = neural_cleanse.Config(
    **kwargs, output=str(tmp_path / "whole"), threshold=0.1
  )
  want = defending.run(neural_cleanse.DEFENSE, whole)
  stopped = neural_cleanse.Config(
    **kwargs, output=str(tmp_path / "stopped"), threshold=0.1
  )
  with pytest.raises(Stopped):
    defending.run(_stopping(neural_cleanse.DEFENSE, 1), stopped)
  got = defending.run(neural_cleanse.DEFENSE, stopped)
  for name in ("search_seconds",):
    del got["details"][name], want["details"][name]
  assert got["details"] == want["details"]
  assert got["measured"] == want["measured"]
  measured = want["measured"]
  assert measured["flagged"] and len(measured["anomaly_index"]) == 10
  assert "clean_accuracy_unlearned" in measured
  for label in measured["flagged"]:
    norms = [n for n in measured["mask_norm"] if n is not None]
    assert measured["mask_norm"][label] < np.median(norms)
  found = np.load(tmp_path / "whole" / "triggers.npz")
  assert found["masks"].shape == (10, 8, 8, 1)
  assert found["flagged"].tolist() == measured["flagged"]


def test_neural_cleanse_with_restarts_and_clean_models(fresh, place):
  config = neural_cleanse.Config(
    run=str(place),
    **SEARCH,
    restarts=2,
    unlearn=False,
    null_runs=str(fresh / "clean-digits"),
  )
  out = defending.run(neural_cleanse.DEFENSE, config)
  (p_value,) = out["measured"]["p_value"]
  null = fresh / "clean-digits" / "defenses" / "neural_cleanse"
  clean = json.loads((null / "results.json").read_text())["measured"]
  assert "detection_rate" not in clean
  assert out["details"]["null_largest_indices"] == [clean["largest_index"]]
  larger = clean["largest_index"] >= out["measured"]["largest_index"]
  assert p_value == (1.0 if larger else 0.5)
  assert np.shape(out["details"]["norms"]) == (2, 10)
  assert len(out["details"]["over_restarts"]) == 10
  again = defending.run(neural_cleanse.DEFENSE, config)
  assert again == out
  with pytest.raises(UserError, match="is not a clean run"):
    defending.run(
      neural_cleanse.DEFENSE,
      dataclasses.replace(config, null_runs=str(place.with_name("seed-1"))),
    )
  with pytest.raises(UserError, match="no run but the one"):
    defending.run(
      neural_cleanse.DEFENSE, dataclasses.replace(config, null_runs=str(place))
    )
  assert _figures(place, "neural_cleanse") == {"triggers", "norms"}


def test_median_of_restarts():
  nan = np.nan
  norms = np.array([[1.0, 5.0, nan], [3.0, nan, nan], [2.0, 7.0, 4.0]])
  got = neural_cleanse._median(norms)
  np.testing.assert_array_equal(got, [2.0, 7.0, nan])


def test_tuning_that_diverges_is_said(place):
  config = fine_pruning.Config(run=str(place), learning_rate=1e30, epochs=2)
  with pytest.raises(UserError, match="diverged: take a smaller --learning"):
    defending.run(fine_pruning.DEFENSE, config)


def test_strip_with_fine_pruning(place):
  config = strip_fine_pruning.Config(
    run=str(place), epochs=1, overlays=5, frr="0.05", eval_images=60
  )
  measured = defending.run(strip_fine_pruning.DEFENSE, config)["measured"]
  mean = {name: score["mean"] for name, score in measured.items()}
  assert mean["clean_accuracy"] <= 1 - mean["frr"] + 1e-9
  assert mean["attack_success_rate"] + mean["robust_accuracy"] <= mean["far"]
  refused = 1 - mean["far"]
  assert mean["triggered_accuracy"] == pytest.approx(
    refused + mean["robust_accuracy"]
  )
  low, high = sorted([mean["clean_accuracy"], mean["triggered_accuracy"]])
  assert low <= mean["mixed_accuracy"] <= high


def test_pruning_aware_leaves_a_run(fresh, place):
  config = pruning_aware.Config(
    run=str(place), clean_run=str(fresh / "clean-digits"), epochs=2, drop=0.7
  )
  out = pruning_aware.run(config)
  new = place.with_name("seed-0-pruning_aware")
  assert json.loads((new / "results.json").read_text()) == out
  subject = load(pruning.Config(run=str(new)), new, print)
  exam = Exam(subject, jax.random.key(0))
  scores = exam.scores(subject.defender.model, subject.defender.weights)
  for name, score in scores.items():
    assert out["measured"][name] == score._asdict()
  # A second start repeats nothing and says the same.
  again = pruning_aware.run(config)
  assert again["measured"] == out["measured"]
  assert again["seconds"] == out["seconds"]


@pytest.mark.parametrize(
  "script, kwargs, words",
  [
    (pruning, {"layer": "conv_9"}, "no layer 'conv_9'; take one of conv_1"),
    (pruning, {"drops": "2"}, "2 is not between 0 and 1"),
    (goodnet, {"drops": "x"}, "take shares with commas"),
    (fine_pruning, {"by": "size"}, "take activation or value"),
    (fine_pruning, {"drop": 0.0}, "drop=0.0 is out of range"),
    (fine_pruning, {"by": "value", "proxy": True}, "run experiments.neural"),
    (fine_pruning, {"proxy": True}, "proxy goes with --by=value"),
    (fine_pruning, {"epochs": 0}, "epochs=0 is out of range"),
    (neural_cleanse, {"restarts": 0}, "restarts=0"),
    (neural_cleanse, {"asr_threshold": 2.0}, "at most 1"),
    (
      neural_cleanse,
      {"steps": 1, "updates": 1, "asr_threshold": 1.0},
      "classes reached the success rate, and an anomaly index takes 3",
    ),
    (strip_fine_pruning, {"frr": "0.1,0.2"}, "take one rate"),
  ],
)
def test_bad_input_is_one_line(place, script, kwargs, words):
  config = script.Config(run=str(place), **kwargs)
  with pytest.raises(UserError, match=words) as error:
    defending.run(script.DEFENSE, config)
  assert "\n" not in str(error.value)
  assert not list(place.rglob("defenses/**/*results.json*"))


@pytest.mark.parametrize(
  "kwargs, words",
  [
    ({}, "take --run=runs/NAME of an attack and --clean_run"),
    ({"clean_run": "clean-digits", "drop": 1.0}, "drop=1.0"),
    ({"clean_run": "clean-digits", "drop": 1e-7}, "no channel of conv_2 is"),
    ({"clean_run": "badnets-digits-seeds"}, "groups of the same seeds"),
    ({"clean_run": "badnets-digits-seeds/seed-1"}, "do not fit: seed is 0"),
    ({"run": "clean-digits", "clean_run": "clean-digits"}, "is a clean run"),
  ],
)
def test_pruning_aware_needs_runs_that_fit(fresh, monkeypatch, kwargs, words):
  monkeypatch.chdir(fresh)
  defaults = {"run": "badnets-digits-seeds/seed-0"}
  with pytest.raises(UserError, match=words):
    pruning_aware.run(pruning_aware.Config(**(defaults | kwargs)))
