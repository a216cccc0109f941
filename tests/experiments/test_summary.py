"""The table of runs and their defences."""

import json

import pytest

from bdjax.defenses import DEFENSES
from bdjax.errors import UserError
from bdjax.runs import DefenseConfig, defend
from bdjax.runs.summary import (
  find_finished_runs,
  markdown,
  select_scores,
  summarize,
)
from experiments import summary

SCORE = {"mean": 0.5, "low": 0.25, "high": 0.75}


def _write(path, measured, **more):
  path.parent.mkdir(parents=True)
  path.write_text(json.dumps({"measured": measured} | more))


def test_a_table_by_hand(tmp_path):
  run = tmp_path / "ban-mnist"
  _write(run / "results.json", {"clean_accuracy": SCORE})
  _write(
    run / "defenses/fine_pruning-value/results.json",
    {
      "clean_accuracy_before": 0.9,
      "clean_accuracy_0.05": 0.8,
      "clean_accuracy_repaired": 0.75,
    },
    defense="fine_pruning",
  )
  _write(
    run / "defenses/strip/results.json",
    {"frr_at_0.02": 0.25, "far_at_0.02": 0.125, "auroc": SCORE},
    defense="strip",
  )
  _write(run / "defenses/mine/results.json", {"far": 1.0}, defense="mine")
  _write(run / "defenses/scan/results.json", {"steps": 3})
  assert summarize([run]) == [
    ["", "ban-mnist"],
    ["clean accuracy", "50.0 (25.0 to 75.0)"],
    ["attack success rate", ""],
    # In the order of DEFENSES, unknown ones last; no row that is empty.
    ["strip: far at 0.02", "12.5"],
    ["strip: frr at 0.02", "25.0"],
    ["strip: auroc", "0.50 (0.25 to 0.75)"],
    ["fine_pruning-value: clean accuracy repaired", "75.0"],
    ["mine: far", "100.0"],
  ]


def test_runs_with_other_defences_share_a_table(tmp_path):
  for name, defense, value in (("a", "goodnet", 0.5), ("b", "pruning", 0.25)):
    _write(tmp_path / name / "results.json", {"attack_success_rate": value})
    path = tmp_path / name / "defenses" / defense / "results.json"
    _write(path, {"clean_accuracy_at_0.02": value}, defense=defense)
  table = summarize([tmp_path / "a", tmp_path / "b"])
  assert table[2:] == [
    ["attack success rate", "50.0", "25.0"],
    ["pruning: clean accuracy at 0.02", "", "25.0"],
    ["goodnet: clean accuracy at 0.02", "50.0", ""],
  ]


@pytest.mark.parametrize(
  ("names", "rate", "chosen"),
  [
    (["far_at_0.005", "far_at_0.01", "far_at_0.05"], 0.02, ["far_at_0.01"]),
    (["far_at_0.01", "far_at_0.03"], 0.021, ["far_at_0.03"]),
    (["far_at_1e-05", "far_at_0.1"], 0.02, ["far_at_1e-05"]),
    (["clean_accuracy_at_0", "clean_accuracy_at_0.1"], 0.02,
     ["clean_accuracy_at_0.1"]),
    (["clean_accuracy_before"], 0.02, []),
    (["frr_pruned", "frr_repaired", "frr", "frr_at_0.1"], 0.02,
     ["frr_repaired", "frr", "frr_at_0.1"]),
    (["robust_accuracy", "score_sd_clean", "flagged", "farther"], 0.02, []),
  ],
)  # fmt: skip
def test_one_score_of_each_form_is_shown(names, rate, chosen):
  assert select_scores(dict.fromkeys(names, 0.5), rate) == chosen


def test_runs_are_found_and_other_results_are_not(tmp_path, capsys):
  config = {"attack": None}
  _write(tmp_path / "clean-a/results.json", {"x": 1}, config=config)
  _write(tmp_path / "clean-b/results.json", {"x": 1}, config=config)
  _write(tmp_path / "scan-a/results.json", {"x": 1}, config={"name": "a"})
  _write(tmp_path / "csaw-a/results.json", {"x": 1})
  sweep = tmp_path / "sweep-a/results.json"
  sweep.parent.mkdir()
  sweep.write_text(json.dumps({"settings": [], "config": config}))
  names = [path.name for path in find_finished_runs(tmp_path)]
  assert names == ["clean-a", "clean-b"]
  summary.start({"runs_dir": str(tmp_path), "suffix": "-b", "rate": 0.02})
  assert capsys.readouterr().out.startswith("|  | clean-b |\n|---|---|\n")
  with pytest.raises(UserError, match="finished run whose name ends in 'c'"):
    find_finished_runs(tmp_path, "c")
  with pytest.raises(UserError, match="runs_dir must hold a finished run .got"):
    find_finished_runs(tmp_path / "nowhere")
  sweep.write_text("{")
  with pytest.raises(UserError, match="damaged"):
    find_finished_runs(tmp_path)


def test_markdown_by_hand():
  assert markdown([["a", "b"], ["1", "2"]]) == "| a | b |\n|---|---|\n| 1 | 2 |"


@pytest.mark.slow
def test_every_defence_of_a_run_is_in_its_table(copied):
  """Real results of the two kinds with rates, and of the group."""
  group = copied / "badnets-digits-seeds"
  for name in ("pruning", "strip"):
    values = {"calibration": 20} if name == "strip" else {}
    settings = DEFENSES[name].settings(**values)
    defend(name, settings, DefenseConfig(run=str(group), eval_images=60))
  runs = find_finished_runs(copied)
  table = {row[0]: row[1:] for row in summarize(runs)}
  assert table[""] == ["badnets-digits-seeds", "clean-digits"]
  assert table["attack success rate"][1] == ""
  for title in (
    "strip: attack success rate at 0.02",
    "strip: far at 0.02",
    "strip: frr at 0.02",
    "strip: auroc",
    "pruning: clean accuracy at 0.02",
    "pruning: attack success rate at 0.02",
  ):
    cells = table[title]
    assert " to " in cells[0] and cells[1] == "", title
