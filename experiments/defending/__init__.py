"""What the experiments on defences share: the run, the defender, the exam."""

from experiments.common.config import flag
from experiments.defending.config import Config
from experiments.defending.exam import Exam, share_of
from experiments.defending.pieces import in_pieces
from experiments.defending.runner import (
  Defense,
  Findings,
  Space,
  check_finite,
  combine,
  main,
  root_key,
  run,
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
  "combine",
  "flag",
  "in_pieces",
  "main",
  "members",
  "root_key",
  "run",
  "share_of",
]
