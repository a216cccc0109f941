"""Figures of results: every function writes one PNG, whole or not at all.

Nothing is computed here, and matplotlib is imported when a figure is drawn: it
takes a while to import, and a run should train by then.
"""

from bdjax.plots.attacks import (
  examples,
  trigger_examples,
  trigger_sheet,
)
from bdjax.plots.defenses import (
  mask_norms,
  reversed_triggers,
  score_histogram,
)
from bdjax.plots.matrix import source_target_matrix
from bdjax.plots.patch_regions import regions
from bdjax.plots.repairs import repair_curve, rounds
from bdjax.plots.scanning import scanned_norms
from bdjax.plots.sheet import page
from bdjax.plots.sweeps import sweep
from bdjax.plots.training import training_curves

__all__ = [
  "examples",
  "mask_norms",
  "page",
  "regions",
  "repair_curve",
  "reversed_triggers",
  "rounds",
  "scanned_norms",
  "score_histogram",
  "source_target_matrix",
  "sweep",
  "training_curves",
  "trigger_examples",
  "trigger_sheet",
]
