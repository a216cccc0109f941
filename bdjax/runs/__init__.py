"""Resumable runs on disk: training, defending, loading. No flags.

`run(RunConfig(...))` trains what `python -m experiments.NAME` trains,
`defend(...)` runs a defence on it, `load_run(directory)` gives the network, its
attack and its data back.
"""

from bdjax.runs.config import RunConfig
from bdjax.runs.defend import DefenseConfig, defend, defend_run
from bdjax.runs.load import TrainedRun, load_checkpoint, load_run
from bdjax.runs.run import run
from bdjax.runs.signals import Stopped

__all__ = [
  "DefenseConfig",
  "RunConfig",
  "Stopped",
  "TrainedRun",
  "defend",
  "defend_run",
  "load_checkpoint",
  "load_run",
  "run",
]
