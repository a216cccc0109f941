"""What the experiments on defences share: the run, the defender, the exam."""

from experiments.common.config import flag
from experiments.defending.config import Config, check_ranges
from experiments.defending.defense import Defense, Findings, Space
from experiments.defending.exam import Exam, share_of
from experiments.defending.pieces import in_pieces
from experiments.defending.runner import (
  check_finite,
  combine,
  main,
  root_key,
  run,
  run_on,
)
from experiments.defending.subject import Defender, members

__all__ = [
  "Config",
  "Defender",
  "Defense",
  "Exam",
  "Findings",
  "Space",
  "check_finite",
  "check_ranges",
  "combine",
  "flag",
  "in_pieces",
  "main",
  "members",
  "root_key",
  "run",
  "run_on",
  "share_of",
]
