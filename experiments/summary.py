"""Print one Markdown table of all runs and their defences.

python -m experiments.summary --runs_dir=runs --suffix=mnist-seeds
"""

import dataclasses
import pathlib
from typing import Any

from bdjax.runs.summary import find_finished_runs, markdown, summarize
from bdjax.settings import setting

from . import cli


@dataclasses.dataclass(frozen=True)
class Config:
  """Flags of the script."""

  runs_dir: str = setting("runs", "Directory of the runs.")
  suffix: str = setting("", "Ending of the names of the runs to show.")
  rate: float = setting(
    0.02,
    "Rate at which scores are shown that there are at several rates: the false "
    "rejection rate of a detector, the drop of the accuracy of pruning.",
    above=0,
    below=1,
  )


def start(values: dict[str, Any]) -> None:
  """Print the table."""
  config = Config(**values)
  root = pathlib.Path(config.runs_dir).expanduser()
  runs = find_finished_runs(root, config.suffix)
  print(markdown(summarize(runs, config.rate)))


if __name__ == "__main__":
  cli.serve(dataclasses.fields(Config), start)
