"""Defences on trained networks, one published method a file or folder.

A method is a function of the name of its module, `pruning(defender)`; only
`strip` is the module, with `strip.calibrate` and `strip.detector`. Here these
functions hide the modules: other names are imported from the module itself, as
in `from bdjax.defenses.pruning import compile_curve`.
"""

from bdjax.defenses import strip
from bdjax.defenses.base import (
  Defender,
  DefenseMethod,
  InputDetector,
  Repair,
  RepairPath,
  SampleScores,
  TrainedNetwork,
  TrainingDefender,
  Verdict,
)
from bdjax.defenses.fine_pruning.method import METHOD as _FINE_PRUNING
from bdjax.defenses.fine_pruning.method import fine_pruning
from bdjax.defenses.fine_pruning.settings import FinePruningSettings
from bdjax.defenses.fine_tuning import METHOD as _FINE_TUNING
from bdjax.defenses.fine_tuning import FineTuningSettings, fine_tuning
from bdjax.defenses.goodnet import METHOD as _GOODNET
from bdjax.defenses.goodnet import goodnet
from bdjax.defenses.neural_cleanse.method import METHOD as _NEURAL_CLEANSE
from bdjax.defenses.neural_cleanse.method import (
  NeuralCleanseSettings,
  neural_cleanse,
)
from bdjax.defenses.pruning import METHOD as _PRUNING
from bdjax.defenses.pruning import PruningSettings, pruning
from bdjax.defenses.scan.method import ScanSettings, scan
from bdjax.defenses.strip import StripSettings
from bdjax.defenses.strip_fine_pruning import METHOD as _STRIP_FINE_PRUNING
from bdjax.defenses.strip_fine_pruning import (
  StripFinePruningSettings,
  strip_fine_pruning,
)

__all__ = [
  "DEFENSES",
  "Defender",
  "DefenseMethod",
  "FinePruningSettings",
  "FineTuningSettings",
  "InputDetector",
  "NeuralCleanseSettings",
  "PruningSettings",
  "Repair",
  "RepairPath",
  "SampleScores",
  "ScanSettings",
  "StripFinePruningSettings",
  "StripSettings",
  "TrainedNetwork",
  "TrainingDefender",
  "Verdict",
  "fine_pruning",
  "fine_tuning",
  "goodnet",
  "neural_cleanse",
  "pruning",
  "scan",
  "strip",
  "strip_fine_pruning",
]

DEFENSES: dict[str, DefenseMethod] = {
  "strip": strip.METHOD,
  "neural_cleanse": _NEURAL_CLEANSE,
  "pruning": _PRUNING,
  "goodnet": _GOODNET,
  "fine_pruning": _FINE_PRUNING,
  "fine_tuning": _FINE_TUNING,
  "strip_fine_pruning": _STRIP_FINE_PRUNING,
}
