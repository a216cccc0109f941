"""The table at the end of a defence."""

import pathlib
import re
from typing import Any

import rich.box
import rich.console
import rich.table


def print_table(results: dict[str, Any], directory: pathlib.Path) -> None:
  """Prints what was measured, with what the literature reports beside it."""
  published = results["reported"]
  table = rich.table.Table(
    title=f"{results['defense']} on {results['run']['name']}",
    box=rich.box.SIMPLE_HEAD,
    title_justify="left",
  )
  scores, lists = {}, {}
  for name, value in results["measured"].items():
    (lists if isinstance(value, list) else scores)[name] = value
  over = sorted({v["over"] for v in scores.values() if isinstance(v, dict)})
  table.add_column("score")
  table.add_column("measured", justify="right")
  table.add_column(f"95% interval over {' / '.join(over)}")
  if published:
    table.add_column("reported", justify="right")
  for name, value in scores.items():
    row = [name.replace("_", " "), *_cells(name, value)]
    if published:
      row.append(_number(name, published[name]) if name in published else "")
    table.add_row(*row)
  console = rich.console.Console(highlight=False)
  console.print(table)
  for name, values in lists.items():
    text = ", ".join(map(_item, values)) or "none"
    console.print(f"  {name.replace('_', ' ')}: {text}")
  console.print(f"  {directory}", soft_wrap=True)


def _cells(name: str, value: Any) -> tuple[str, str]:
  if isinstance(value, dict):
    low, high = _number(name, value["low"]), _number(name, value["high"])
    return _number(name, value["mean"]), f"{low} to {high}"
  return _number(name, value), ""


def _item(value: Any) -> str:
  if isinstance(value, list):
    return "[" + ", ".join(map(_item, value)) + "]"
  return f"{value:.3g}" if isinstance(value, float) else str(value)


def _number(name: str, value: Any) -> str:
  if value is None:
    return "\N{EN DASH}"
  share = ("accuracy", "rate", "far", "frr", "coverage", "share")
  if any(word in re.split("[_/]", name) for word in share):
    return f"{value:.2%}"
  return f"{value:.4g}"
