"""Figures from results: drawing only, nothing is computed here.

Every function writes one PNG, whole or not at all.
"""

import importlib
from typing import Any

_HOME = {
  "entropies": "defenses",
  "examples": "attacks",
  "mask_norms": "defenses",
  "page": "sheet",
  "pruning_curve": "defenses",
  "regions": "attacks",
  "reversed_triggers": "defenses",
  "rounds": "defenses",
  "scanned_norms": "scanning",
  "source_target_matrix": "matrix",
  "sweep": "sweeps",
  "training_curves": "training",
  "trigger_sheet": "attacks",
}
__all__ = list(_HOME)


def __getattr__(name: str) -> Any:
  # Not before the first figure is drawn: matplotlib takes a while to import,
  # and a run should train by then.
  if name not in _HOME:
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
  return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
