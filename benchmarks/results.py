"""The page RESULTS.md, made from the lines of JSON that benchmarks print."""

import itertools
import json
import pathlib
from collections.abc import Iterable
from typing import Any

from benchmarks.timing import duration, spread

Line = dict[str, Any]

_HEAD = """\
# Results of the benchmarks

Written by `python -m benchmarks.all` from `results.jsonl`, and not by hand.
Each row is timed in turns with those of its table, in one process: the median
of the turns (lowest to highest), and the median over the turns of how many
times as long it takes as the first row, which is ours. Operations are those of
the textbook algorithms; Winograd's convolutions do fewer, so that a share of
the ceiling can pass 100%.
"""


def parse(output: str) -> list[Line]:
  """Return the lines of JSON among the output of a benchmark."""
  return [json.loads(x) for x in output.splitlines() if x.startswith('{"')]


def merge(old: Iterable[Line], new: Iterable[Line]) -> list[Line]:
  """Replace old lines by new ones of the same benchmark and claim.

  Returns:
    The lines by benchmark, then in the order in which the claims first came.
  """
  lines = {(line["benchmark"], line["claim"]): line for line in old}
  lines |= {(line["benchmark"], line["claim"]): line for line in new}
  return sorted(lines.values(), key=lambda line: line["benchmark"])


def read(path: pathlib.Path) -> list[Line]:
  """Read the lines of a file; none where there is no file."""
  return parse(path.read_text()) if path.exists() else []


def write(path: pathlib.Path, lines: Iterable[Line]) -> None:
  """Write a file of lines."""
  path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def render(lines: Iterable[Line]) -> str:
  """Render the page: a section a benchmark, a table a comparison."""
  parts = [_HEAD]
  for name, group in itertools.groupby(lines, lambda line: line["benchmark"]):
    parts.append(f"## {name}\n")
    for line in group:
      parts += [f"### {line['claim']}\n", _table(line), _below(line)]
  return "\n".join(parts)


def _table(line: Line) -> str:
  rows = [f"| | seconds by {line['item']} | times as long |", "|---|---|---|"]
  for name, seconds in line["seconds"].items():
    s = spread(seconds)
    times = f"{duration(s.median)} ({duration(s.low)} to {duration(s.high)})"
    ratio = line["ratios"].get(name)
    beside = ""
    if ratio:
      low, high = _number(ratio["low"]), _number(ratio["high"])
      beside = f"{_number(ratio['median'])} ({low} to {high})"
    rows.append(f"| {name} | {times} | {beside} |")
  return "\n".join(rows) + "\n"


def _below(line: Line) -> str:
  """Render the lines of text under a table."""
  notes = []
  if line["goal"]:
    notes.append(f"Wanted: {line['goal']}.")
  if "slope" in line:
    notes.append(
      f"Seconds grow as size ** {line['slope']:.2f}, operations as size ** "
      f"{line['operations_slope']:.2f}."
    )
  if "ceiling" in line:
    ceiling = line["ceiling"]
    notes.append(
      f"A call of ours: {line['operations'] / 1e9:.3g} GFLOP, at least "
      f"{line['traffic'] / 1e6:.3g} MB; {line['share']:.0%} of the "
      f"{line['bound']} ceiling ({ceiling['operations'] / 1e9:.0f} GFLOP/s, "
      f"{ceiling['bytes'] / 1e9:.1f} GB/s)."
    )
  for name, part in line["parts"].items():
    if part != 1:
      notes.append(f"{name}: {part:.2g} of the work timed, and scaled up.")
  if line.get("others", 0.0) > 0.05:
    notes.append(
      f"Other processes took {line['others']:.0%} of the CPU meanwhile."
    )
  versions = ", ".join(f"{k} {v}" for k, v in line["versions"].items())
  turns = len(next(iter(line["seconds"].values())))
  notes.append(
    f"`{line['command']}`, {turns} turns, {line['date']}, commit "
    f"{line['commit']}; {line['machine']}; {versions}."
  )
  return "\n\n".join(notes) + "\n"


def _number(x: float) -> str:
  return f"{x:.0f}" if x >= 100 else f"{x:.3g}"
