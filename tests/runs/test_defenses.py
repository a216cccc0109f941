"""Every defence against a tiny backdoored run, as its script runs it."""

import json

import numpy as np
import pytest
from PIL import Image

from bdjax.checkpoints import Checkpoints
from bdjax.defenses import DEFENSES
from bdjax.errors import UserError
from bdjax.runs import DefenseConfig, defend

SEARCH = {"steps": 15, "updates": 4, "patience": 2, "asr_threshold": 0.5}


@pytest.fixture
def path(copied):
  return copied / "badnets-digits-seeds" / "seed-0"


def _defend(name, run, *, config=None, **settings):
  chosen = DEFENSES[name].settings(**settings)
  return defend(name, chosen, DefenseConfig(run=str(run), **(config or {})))


def _figures(path, defense):
  folder = path / "defenses" / defense / "figures"
  for figure in folder.iterdir():
    with Image.open(figure) as image:
      image.load()
  return {figure.stem for figure in folder.iterdir()}


@pytest.mark.figures
def test_pruning(path):
  results = _defend("pruning", path)
  details, measured = results["details"], results["measured"]
  assert details["layer"] == "conv_2" and len(details["order"]) == 2
  own = json.loads((path / "results.json").read_text())["measured"]
  for score in ("clean_accuracy", "attack_success_rate"):
    assert measured[f"{score}_at_0"]["mean"] == own[score]["mean"]
  for drop in ("0.02", "0.04", "0.1"):
    count = details["points"][f"at_{drop}"]
    for score in ("clean accuracy", "attack success rate"):
      name = f"{score.replace(' ', '_')}_at_{drop}"
      assert measured[name]["mean"] == pytest.approx(details[score][count])
  saved = path / "defenses/pruning/checkpoints/drop-0.1"
  again = defend(
    "pruning",
    DEFENSES["pruning"].settings(),
    DefenseConfig(
      checkpoint=str(saved), dataset="digits", model="cnn", width=4
    ),
  )
  loaded = again["measured"]["clean_accuracy_at_0"]
  assert loaded == measured["clean_accuracy_at_0.1"]
  assert _figures(path, "pruning") == {"pruning"}


@pytest.mark.slow
def test_goodnet_answers_where_both_agree(path):
  measured = _defend("goodnet", path, drops="0.1")["measured"]
  alone = _defend("pruning", path)["measured"]
  for score in ("clean_accuracy", "attack_success_rate"):
    both = measured[f"{score}_at_0.1"]["mean"]
    assert both <= alone[f"{score}_at_0.1"]["mean"]
    assert both <= alone[f"{score}_at_0"]["mean"]
  covered = 1 - measured["frr_at_0.1"]["mean"]
  assert measured["clean_accuracy_at_0.1"]["mean"] <= covered


@pytest.mark.slow
@pytest.mark.figures
@pytest.mark.parametrize(
  "name, names",
  [
    ("fine_pruning", ["before", "pruned", "repaired"]),
    ("fine_tuning", ["before", "repaired"]),
  ],
)
def test_repairs(path, name, names):
  results = _defend(name, path, epochs=2)
  assert [row["name"] for row in results["details"]["networks"]] == names
  assert _figures(path, name) == {"rounds"}
  measured = results["measured"]
  before, after = (
    {
      score: measured[f"{score}_{which}"]["mean"]
      for score in ("clean_accuracy", "attack_success_rate")
    }
    for which in ("before", "repaired")
  )
  gained = before["attack_success_rate"] - after["attack_success_rate"]
  lost = before["clean_accuracy"] - after["clean_accuracy"]
  assert measured["defense_effectiveness_rate_repaired"] == pytest.approx(
    (max(0, gained) - max(0, lost) + 1) / 2
  )
  saved = path / "defenses" / name / "checkpoints" / "repaired"
  assert saved.is_dir()


def _stop_saving_after(monkeypatch, count):
  """Let the next save of a checkpoint after `count` raise."""
  save, calls = Checkpoints.save, []

  def counted(self, *args, **kwargs):
    if len(calls) == count:
      raise KeyboardInterrupt
    calls.append(args[0])
    return save(self, *args, **kwargs)

  monkeypatch.setattr(Checkpoints, "save", counted)


@pytest.mark.slow
@pytest.mark.parametrize(
  "name, settings",
  [
    ("fine_pruning", {"by": "value", "step": 0.2, "drop": 0.9}),
    (
      "neural_cleanse",
      {**SEARCH, "unlearn_epochs": 1, "threshold": 0.1},
    ),
  ],
)
def test_resumes_where_it_was_stopped(
  path, tmp_path, monkeypatch, name, settings
):
  whole = {"output": str(tmp_path / "whole")}
  expected = _defend(name, path, config=whole, **settings)
  stopped = {"output": str(tmp_path / "stopped")}
  with monkeypatch.context() as patch:
    _stop_saving_after(patch, 2)
    with pytest.raises(KeyboardInterrupt):
      _defend(name, path, config=stopped, **settings)
  results = _defend(name, path, config=stopped, **settings)
  for each in (results, expected):
    each["details"].pop("search_seconds", None)
  assert results["details"] == expected["details"]
  assert results["measured"] == expected["measured"]


@pytest.mark.slow
@pytest.mark.figures
def test_neural_cleanse_keeps_its_triggers(path):
  results = _defend(
    "neural_cleanse", path, **SEARCH, unlearn_epochs=1, threshold=0.1
  )
  measured = results["measured"]
  assert measured["flagged"] and len(measured["anomaly_index"]) == 10
  assert "clean_accuracy_unlearned" in measured
  assert "clean_accuracy_before" in measured
  for label in measured["flagged"]:
    norms = [n for n in measured["mask_norm"] if n is not None]
    assert measured["mask_norm"][label] < np.median(norms)
  triggers = np.load(path / "defenses/neural_cleanse/triggers.npz")
  assert triggers["masks"].shape == (10, 8, 8, 1)
  assert triggers["flagged"].tolist() == measured["flagged"]
  assert _figures(path, "neural_cleanse") == {"triggers", "norms", "rounds"}


@pytest.mark.slow
def test_a_verdict_is_compared_with_clean_runs(copied, path):
  clean_run = copied / "clean-digits"
  kwargs = {**SEARCH, "restarts": 2, "unlearn": False}

  def run(null_runs):
    config = {"null_runs": str(null_runs)}
    return _defend("neural_cleanse", path, config=config, **kwargs)

  results = run(clean_run)
  (p_value,) = results["measured"]["p_value"]
  null = clean_run / "defenses" / "neural_cleanse" / "results.json"
  clean = json.loads(null.read_text())["measured"]
  assert "detection_rate" not in clean
  assert results["details"]["null_largest_indices"] == [clean["largest_index"]]
  larger = clean["largest_index"] >= results["measured"]["largest_index"]
  assert p_value == (1.0 if larger else 0.5)
  assert np.shape(results["details"]["norms"]) == (2, 10)
  assert len(results["details"]["over_restarts"]) == 10
  assert run(clean_run) == results
  with pytest.raises(UserError, match="null_runs must be clean runs"):
    run(path.with_name("seed-1"))
  with pytest.raises(UserError, match="null_runs must name another run"):
    run(path)


@pytest.mark.slow
def test_strip_with_fine_pruning(path):
  measured = _defend(
    "strip_fine_pruning",
    path,
    config={"eval_images": 60},
    epochs=1,
    overlays=5,
    frr="0.05",
  )["measured"]
  mean = {name: score["mean"] for name, score in measured.items()}
  assert mean["clean_accuracy"] <= 1 - mean["frr"] + 1e-9
  assert mean["attack_success_rate"] + mean["robust_accuracy"] <= mean["far"]
  refused = 1 - mean["far"]
  assert mean["triggered_accuracy"] == pytest.approx(
    refused + mean["robust_accuracy"]
  )
  low, high = sorted([mean["clean_accuracy"], mean["triggered_accuracy"]])
  assert low <= mean["mixed_accuracy"] <= high


@pytest.mark.parametrize(
  "name, settings, words",
  [
    ("pruning", {"layer": "conv_9"}, "conv_1"),
    ("pruning", {"drops": "2"}, "drops must be"),
    ("goodnet", {"drops": "x"}, "drops must be"),
    ("fine_pruning", {"by": "size"}, "by must be one of activation, value"),
    ("fine_pruning", {"drop": 0.0}, "drop must be more than 0"),
    ("fine_pruning", {"epochs": 0}, "epochs must be at least 1"),
    (
      "fine_pruning",
      {"learning_rate": 1e30, "epochs": 2},
      "learning_rate must be smaller",
    ),
    (
      "fine_pruning",
      {"by": "value", "proxy_triggers": "nowhere.npz"},
      "nowhere.npz",
    ),
    ("fine_pruning", {"proxy_triggers": "x.npz"}, "proxy_triggers"),
    ("neural_cleanse", {"restarts": 0}, "restarts must be at least 1"),
    ("neural_cleanse", {"asr_threshold": 2.0}, "at most 1"),
    (
      "neural_cleanse",
      {"steps": 1, "updates": 1, "asr_threshold": 1.0},
      "anomaly index",
    ),
    ("strip_fine_pruning", {"frr": "0.1,0.2"}, "frr must be one"),
  ],
)
def test_bad_input_is_one_line(path, name, settings, words):
  with pytest.raises(UserError, match=words) as error:
    _defend(name, path, **settings)
  assert "\n" not in str(error.value)
  assert not list(path.rglob("defenses/**/*results.json*"))
