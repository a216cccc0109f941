"""Train an attack around pruning (Liu et al. 2018, section 3.2).

python -m experiments.pruning_aware --run=runs/badnets-mnist \
  --clean_run=runs/clean-mnist

Trains the attack of --run again, from the clean network, into the channels that
clean images use; leaves the network as a run, runs/NAME-pruning_aware, and runs
pruning and fine-pruning on both. The network needs ReLU: not airbench.
"""

import dataclasses
from typing import Any

from bdjax.runs.pruning_aware import PruningAwareConfig, pruning_aware_run

from . import cli, tables


def start(values: dict[str, Any]) -> None:
  """Attack, and print the scores of both networks."""
  results, directory = pruning_aware_run(PruningAwareConfig(**values))
  config = results["config"]
  title = {"attack": f"pruning-aware {config['attack']}"}
  tables.print_run(results | {"config": config | title}, directory)


if __name__ == "__main__":
  cli.serve(dataclasses.fields(PruningAwareConfig), start)
