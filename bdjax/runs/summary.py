"""One table of all runs and their defences, found from their results."""

import pathlib
import re
from typing import Any, NamedTuple

from bdjax import files
from bdjax.defenses import DEFENSES
from bdjax.errors import UserError
from bdjax.runs import directory as layout

# Kinds of scores in the table, in its order, and those that are no shares.
_OF_RUNS = ("clean_accuracy", "attack_success_rate")
_KINDS = (
  *_OF_RUNS,
  *("far", "frr", "auroc", "tpr", "fpr"),
  *("detection_rate", "false_alarm_rate", "largest_index"),
)
_INDICES = ("auroc", "largest_index")
_SCORE = re.compile(
  rf"({'|'.join(_KINDS)})"
  r"(?:_at_(?P<rate>[\d.]+(?:e-\d+)?)|_(?P<name>[^\d]\w*))?"
)
_BEFORE = "before"  # suffix of the scores of the network before a defence


class _Row(NamedTuple):
  """A score of a defence: the place of its row in the table, and its title."""

  method: int
  directory: str
  kind: int
  score: str

  @property
  def title(self) -> str:
    return f"{self.directory}: {self.score.replace('_', ' ')}"


def find_finished_runs(
  root: pathlib.Path, suffix: str = ""
) -> list[pathlib.Path]:
  """Find the finished runs and groups of a directory.

  Scans, sweeps and other results are left out.

  Args:
    root: of the runs.
    suffix: only runs whose names end in this.

  Raises:
    UserError: there is none, or results are damaged.
  """
  runs = sorted(
    path.parent
    for path in root.glob(f"*/{layout.RESULTS}")
    if path.parent.name.endswith(suffix) and _is_run(path)
  )
  if not runs:
    ending = f" whose name ends in {suffix!r}" if suffix else ""
    raise UserError(f"runs_dir must hold a finished run{ending} (got {root})")
  return runs


def summarize(runs: list[pathlib.Path], rate: float = 0.02) -> list[list[str]]:
  """Put the scores of runs and of their defences into a table.

  The scores of a defence are found from its results: of each kind (accuracy,
  attack success rate, far, ...) those at the rate nearest to the one given, of
  networks with a name the last (a repair's outcome), and those with neither.

  Args:
    runs: directories with `results.json`, each perhaps with `defenses/`.
    rate: false rejection rate of detectors, and drop of the accuracy of
      pruning, at which they are shown.

  Returns:
    A row a score that some run has, and a column a run; the names of the runs
    come first. Shares are in percent, intervals in parentheses.

  Raises:
    UserError: results that are damaged.
  """
  table = [["", *(run.name for run in runs)]]
  own = [_measured(files.read_json(run / layout.RESULTS)) for run in runs]
  for score in _OF_RUNS:
    cells = [_cell(score, measured.get(score)) for measured in own]
    table.append([score.replace("_", " "), *cells])
  columns = [_defense_scores(run, rate) for run in runs]
  rows = sorted({row for column in columns for row in column})
  for row in rows:
    table.append([row.title, *(column.get(row, "") for column in columns)])
  return table


def markdown(table: list[list[str]]) -> str:
  """Format rows as a Markdown table, the first row its head."""
  lines = ["| " + " | ".join(row) + " |" for row in table]
  lines.insert(1, "|" + "---|" * len(table[0]))
  return "\n".join(lines)


def select_scores(measured: dict[str, Any], rate: float) -> list[str]:
  """Select the scores of a defence that the table shows.

  Args:
    measured: of `results.json`, in its order.
    rate: see `summarize`.

  Returns:
    Names of scores: of each kind at most one at a rate, one of a named network
    and one with neither.
  """
  chosen: dict[tuple[str, str], str] = {}
  distance: dict[str, float] = {}
  for score in measured:
    match = _SCORE.fullmatch(score)
    if match is None or match["name"] == _BEFORE:
      continue
    kind = match[1]
    if match["rate"] is None:
      chosen[kind, "named" if match["name"] else ""] = score
      continue
    gap = abs(float(match["rate"]) - rate)
    # 0 is the network as it was.
    if float(match["rate"]) and gap < distance.get(kind, float("inf")):
      chosen[kind, "rate"], distance[kind] = score, gap
  return list(chosen.values())


def _defense_scores(run: pathlib.Path, rate: float) -> dict[_Row, str]:
  """Return the cells of a run's defences."""
  order = list(DEFENSES)
  cells = {}
  for path in run.glob(f"{layout.DEFENSES}/*/{layout.RESULTS}"):
    results = files.read_json(path)
    measured = _measured(results)
    method = results.get("defense") if measured else None
    if method is None:  # a scan
      continue
    position = order.index(method) if method in order else len(order)
    for score in select_scores(measured, rate):
      kind = _KINDS.index(_SCORE.fullmatch(score)[1])
      row = _Row(position, path.parent.name, kind, score)
      cells[row] = _cell(_KINDS[kind], measured[score])
  return cells


def _is_run(path: pathlib.Path) -> bool:
  """Tell results of a training from those of a scan or a sweep."""
  results = files.read_json(path)
  config = results.get("config") if _measured(results) else None
  return isinstance(config, dict) and "attack" in config


def _measured(results: Any) -> dict[str, Any]:
  measured = results.get("measured") if isinstance(results, dict) else None
  return measured if isinstance(measured, dict) else {}


def _cell(kind: str, value: Any) -> str:
  """Format a mean and its interval: shares in percent, indices as they are."""

  def text(x):
    if x is None:
      return "-"
    return f"{x:.2f}" if kind in _INDICES else f"{100 * x:.1f}"

  if value is None:
    return ""
  if not isinstance(value, dict):
    return text(value)
  low, high = text(value["low"]), text(value["high"])
  return f"{text(value['mean'])} ({low} to {high})"
