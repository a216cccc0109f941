"""Scan a network with very many classes for backdoors.

python -m experiments.scan --weights=sunglasses_bd_weights.h5 --images=faces
python -m experiments.scan --run=runs/badnets-mnist

The classes share the steps as K-Arm does (Shen et al. 2021), a random sample of
them is searched to the end, and the smallest masks are compared with that. A
few clean images a class are enough, a handful in all gives a first answer. What
no mask on the image can bring about, a scan cannot find.
"""

import dataclasses
import pathlib
from typing import Any

import rich.box
import rich.console
import rich.table

from bdjax.defenses.scan import ScanSettings, report
from bdjax.runs.scan import scan_run
from bdjax.runs.scan_input import ScanConfig

from . import cli


def print_scan(results: dict[str, Any], directory: pathlib.Path) -> None:
  """Print the classes with the smallest masks, and the verdicts in words.

  Args:
    results: what `results.json` says.
    directory: where it lies.
  """
  table = rich.table.Table(
    title=f"scan of {results['network']['name']}",
    title_justify="left",
    box=rich.box.SIMPLE_HEAD,
  )
  for number, name in enumerate(report.COLUMNS):
    words = number >= len(report.COLUMNS) - 2
    table.add_column(name, justify="left" if words else "right")
  for row in report.table(results["details"]["classes"]):
    table.add_row(*row)
  console = rich.console.Console(highlight=False)
  console.print(table)
  cost = report.cost(results["measured"], results["seconds"]["search"])
  for line in (cost, *results["sentences"], directory):
    console.print(f"  {line}", soft_wrap=True)


def main() -> None:
  """Scan from the command line."""
  shared, own = map(dataclasses.fields, (ScanConfig, ScanSettings))

  def start(values: dict[str, Any]) -> None:
    config = ScanConfig(**{f.name: values[f.name] for f in shared})
    settings = ScanSettings(**{f.name: values[f.name] for f in own})
    print_scan(*scan_run(config, settings))

  cli.serve([*shared, *own], start)


if __name__ == "__main__":
  main()
