"""Run every defence on a BadNet of CSAW-HackML-2020.

python -m experiments.csaw --weights=lab3_bd_weights.h5 --data_dir=data

The networks are small files in the challenge's repository, the image sets are
the user's to download (`bdjax.data.csaw`). The validation set is the
defender's; the test set and the triggered ones only score. Reported values are
those of two published solutions.
"""

import dataclasses
from typing import Any

from bdjax.runs.csaw_defenses import CsawConfig, defend_network, shown

from . import cli, tables


def start(values: dict[str, Any]) -> None:
  """Run the defences, and print one table of all."""
  results, directory = defend_network(CsawConfig(**values))
  table = results | {
    "defense": "all defences",
    "run": {"name": f"csaw-{results['network']}"},
    "measured": shown(results["measured"]),
  }
  tables.print_defense(table, directory)


if __name__ == "__main__":
  cli.serve(dataclasses.fields(CsawConfig), start)
