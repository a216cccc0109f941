"""What the experiments share; `main` is an experiment's command line."""

from experiments.common.cli import main
from experiments.common.config import Config
from experiments.common.runner import run

__all__ = ["Config", "main", "run"]
