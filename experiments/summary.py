"""One table of what every defence found in every run, as Markdown.

python -m experiments.summary --runs_dir=runs --suffix=mnist-seeds
"""

import pathlib
from typing import Any

from absl import app, flags

from bdjax.errors import UserError
from experiments.common.cli import say
from experiments.common.rundir import read_json

# (title, defence, score), one a column.
COLUMNS = (
  ("STRIP: FAR at FRR 1%", "strip", "far_at_0.01"),
  ("STRIP: ASR behind it", "strip", "attack_success_rate_at_0.01"),
  ("STRIP: true FRR", "strip", "frr_at_0.01"),
  ("STRIP: AUROC", "strip", "auroc"),
  ("NC: targets flagged", "neural_cleanse", "detection_rate"),
  ("NC: others flagged", "neural_cleanse", "false_alarm_rate"),
  ("NC: largest index", "neural_cleanse", "largest_index"),
  ("NC, unlearned: clean", "neural_cleanse", "clean_accuracy_unlearned"),
  ("NC, unlearned: ASR", "neural_cleanse", "attack_success_rate_unlearned"),
  ("pruned: clean", "pruning", "clean_accuracy_at_0.04"),
  ("pruned: ASR", "pruning", "attack_success_rate_at_0.04"),
  ("GoodNet: clean", "goodnet", "clean_accuracy_at_0.04"),
  ("GoodNet: ASR", "goodnet", "attack_success_rate_at_0.04"),
  ("fine-pruned: clean", "fine_pruning", "clean_accuracy_repaired"),
  ("fine-pruned: ASR", "fine_pruning", "attack_success_rate_repaired"),
  ("by value: clean", "fine_pruning-value", "clean_accuracy_repaired"),
  ("by value: ASR", "fine_pruning-value", "attack_success_rate_repaired"),
  ("STRIP + fine-pruned: clean", "strip_fine_pruning", "clean_accuracy"),
  ("STRIP + fine-pruned: ASR", "strip_fine_pruning", "attack_success_rate"),
)


def rows_of(runs: list[pathlib.Path]) -> list[list[str]]:
  """A row a score that some run has, and a column a run, the names first.

  Args:
    runs: directories with `results.json`, each with `defenses/`.

  Raises:
    UserError: results that are no JSON.
  """
  own = [_measured(run / "results.json") for run in runs]
  table = [["", *(run.name for run in runs)]]
  for title, score in (
    ("clean accuracy", "clean_accuracy"),
    ("ASR", "attack_success_rate"),
  ):
    table.append([title, *(_cell(score, m.get(score)) for m in own)])
  for title, defense, score in COLUMNS:
    paths = [run / "defenses" / defense / "results.json" for run in runs]
    cells = [_cell(score, _measured(path).get(score)) for path in paths]
    if any(cells):
      table.append([title, *cells])
  return table


def _is_run(path: pathlib.Path) -> bool:
  """Whether results are of a training, and not of a scan, a sweep, ..."""
  found = read_json(path) or {}
  return "measured" in found and "experiment" in found.get("config", {})


def _measured(path: pathlib.Path) -> dict[str, Any]:
  return (read_json(path) or {}).get("measured", {})


def _cell(name: str, value: Any) -> str:
  """A mean and its interval: shares in percent, the rest as they are."""
  if value is None:
    return ""
  index = name in ("largest_index", "auroc")

  def text(x):
    return f"{x:.2f}" if index else f"{100 * x:.1f}"

  if isinstance(value, dict):
    low, high = text(value["low"]), text(value["high"])
    return f"{text(value['mean'])} ({low} to {high})"
  return text(value)


def markdown(table: list[list[str]]) -> str:
  """Rows as a Markdown table, the first row its head."""
  lines = ["| " + " | ".join(row) + " |" for row in table]
  lines.insert(1, "|" + "---|" * len(table[0]))
  return "\n".join(lines)


def main(argv):
  """Prints the table."""
  del argv
  root = pathlib.Path(flags.FLAGS.runs_dir).expanduser()
  runs = sorted(
    path.parent
    for path in root.glob("*/results.json")
    if path.parent.name.endswith(flags.FLAGS.suffix) and _is_run(path)
  )
  if not runs:
    raise UserError(f"no finished run in {root} ends in {flags.FLAGS.suffix!r}")
  print(markdown(rows_of(runs)))


def _start(argv):
  try:
    main(argv)
  except UserError as error:
    say(f"error: {error}")
    raise SystemExit(2) from None


if __name__ == "__main__":
  flags.DEFINE_string("runs_dir", "runs", "Where the runs are.")
  flags.DEFINE_string("suffix", "", "Only runs whose names end in this.")
  app.run(_start)
