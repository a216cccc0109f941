import json

from experiments.summary import markdown, rows_of


def _write(path, measured):
  path.parent.mkdir(parents=True)
  path.write_text(json.dumps({"measured": measured}))


def test_a_table_by_hand(tmp_path):
  run = tmp_path / "ban-mnist"
  score = {"mean": 0.5, "low": 0.25, "high": 0.75}
  _write(run / "results.json", {"clean_accuracy": score})
  _write(
    run / "defenses" / "strip" / "results.json",
    {"far_at_0.01": 0.125, "auroc": score},
  )
  table = {row[0]: row[1] for row in rows_of([run])}
  assert table[""] == "ban-mnist"
  assert table["clean accuracy"] == "50.0 (25.0 to 75.0)"
  assert table["STRIP: FAR at FRR 1%"] == "12.5"
  assert table["STRIP: AUROC"] == "0.50 (0.25 to 0.75)"
  assert table["ASR"] == ""
  # Of the defences' scores the two that were found, and no empty row.
  assert len(table) == 3 + 2
  assert markdown([["a", "b"], ["1", "2"]]) == "| a | b |\n|---|---|\n| 1 | 2 |"
