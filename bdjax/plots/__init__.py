"""Figures from results: drawing only, nothing is computed here.

Every function writes one PNG, whole or not at all.
"""

from bdjax.plots.attacks import examples, regions, trigger_sheet
from bdjax.plots.defenses import (
  entropies,
  mask_norms,
  pruning_curve,
  reversed_triggers,
  rounds,
)
from bdjax.plots.matrix import source_target_matrix
from bdjax.plots.page import page
from bdjax.plots.scanning import scanned_norms
from bdjax.plots.training import training_curves

__all__ = [
  "entropies",
  "mask_norms",
  "pruning_curve",
  "reversed_triggers",
  "rounds",
  "examples",
  "page",
  "regions",
  "scanned_norms",
  "source_target_matrix",
  "training_curves",
  "trigger_sheet",
]
