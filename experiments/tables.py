"""The tables at the end of a run and of a defence."""

import pathlib
from typing import Any

import rich.box
import rich.console
import rich.table

_DIGITS = {"share": "{:.2%}", "pixels": "{:.1f}", "ms": "{:.3g}"}
# Numbers that are no `Score`, by a word of their names.
_SHARES = ("accuracy", "rate", "far", "frr", "share", "coverage")


def print_run(results: dict[str, Any], directory: pathlib.Path) -> None:
  """Print the scores of a run, and of a sweep those of every setting."""
  config = results["config"]
  title = f"{config['attack'] or 'clean'} on {results['data']['name']}"
  if "settings" in results:
    table = _settings_table(results)
  else:
    table = _score_table(results["measured"], results["reported"])
  console = rich.console.Console(highlight=False)
  table.title, table.title_justify = title, "left"
  console.print(table)
  if "difference" in results:
    # Zero is added so that nothing is not printed as minus nothing.
    cost = round(-100 * results["difference"]["mean"], 2) + 0.0
    console.print(f"  cost in clean accuracy: {cost:.2f} points")
  if config["attack"] and "settings" not in results:
    console.print(f"  poisoned: {_poisoned(results)}", soft_wrap=True)
  console.print(f"  {directory}", soft_wrap=True)


def _poisoned(results: dict[str, Any]) -> str:
  """Say what was poisoned: the way, the rate asked for and the realised one."""
  config = results["config"]
  way = {
    "dataset": "a fixed part of the training set",
    "batch": "images of each batch anew",
  }[config["poison"]]
  text = f"{way}, poison rate {config['poison_rate']}"
  share = results.get("details", {}).get("poisoned_share")
  if share is None:
    return text
  return f"{text}, realised {share:.2%} of all images"


def print_defense(results: dict[str, Any], directory: pathlib.Path) -> None:
  """Print what was measured, with published values beside it."""
  scores, lists = {}, {}
  for name, value in results["measured"].items():
    (lists if isinstance(value, list) else scores)[name] = value
  table = _score_table(scores, results["reported"])
  table.title = f"{results['defense']} on {results['run']['name']}"
  table.title_justify = "left"
  console = rich.console.Console(highlight=False)
  console.print(table)
  for name, values in lists.items():
    text = ", ".join(map(_item, values)) or "none"
    console.print(f"  {name.replace('_', ' ')}: {text}")
  console.print(f"  {directory}", soft_wrap=True)


def _score_table(scores: dict[str, Any], published) -> rich.table.Table:
  """Return a row a score, with what the literature reports beside it."""
  over = {v["over"] for v in scores.values() if isinstance(v, dict)}
  table = rich.table.Table("score", box=rich.box.SIMPLE_HEAD)
  table.add_column("measured", justify="right")
  table.add_column(f"95% interval over {' / '.join(sorted(over))}")
  if published:
    table.add_column("reported", justify="right")
  for name, value in scores.items():
    row = [name.replace("_", " "), *_cells(name, value)]
    if published:
      known = name in published
      row.append(number(published[name], _unit(name)) if known else "")
    table.add_row(*row)
  return table


def _settings_table(results: dict[str, Any]) -> rich.table.Table:
  """Return a row a setting, with the two scores that matter most."""
  fields = results["config"]["swept"]
  names = ("clean_accuracy", "attack_success_rate")
  table = rich.table.Table(box=rich.box.SIMPLE_HEAD)
  for field in fields:
    table.add_column(field.replace("_", " "))
  for name in names:
    table.add_column(f"{name.replace('_', ' ')}, %", justify="right")
  for row in results["settings"]:
    cells = [interval(row["measured"][name]) for name in names]
    table.add_row(*(str(row[field]) for field in fields), *cells)
  return table


def interval(score: dict[str, Any]) -> str:
  """Write a score and its interval, shares in percent without the sign."""
  scale, digits = (100, 1) if score["unit"] == "share" else (1, 2)
  mean, low, high = (
    "-" if score[k] is None else f"{scale * score[k]:.{digits}f}"
    for k in ("mean", "low", "high")
  )
  return f"{mean} ({low} to {high})"


def number(value: float | None, unit: str) -> str:
  """Write a number in its unit."""
  if value is None:
    return "\N{EN DASH}"
  return _DIGITS.get(unit, "{:.4g}").format(value)


def _cells(name: str, value: Any) -> tuple[str, str]:
  if isinstance(value, dict):
    low, high = (number(value[k], value["unit"]) for k in ("low", "high"))
    return number(value["mean"], value["unit"]), f"{low} to {high}"
  return number(value, _unit(name)), ""


def _unit(name: str) -> str:
  shares = any(word in _SHARES for word in name.replace("/", "_").split("_"))
  return "share" if shares else "number"


def _item(value: Any) -> str:
  if isinstance(value, list):
    return "[" + ", ".join(map(_item, value)) + "]"
  return f"{value:.3g}" if isinstance(value, float) else str(value)
