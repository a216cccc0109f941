"""What the experiments share; `main` is an experiment's command line."""

from experiments.common.config import Config
from experiments.common.runner import main, run

__all__ = ["Config", "main", "run"]
