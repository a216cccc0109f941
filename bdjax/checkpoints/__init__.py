"""Checkpoints of a run: saved in the background, restored from a whole step."""

from bdjax.checkpoints.manager import Checkpoint, Checkpoints

__all__ = ["Checkpoint", "Checkpoints"]
