"""Scan of a network with very many classes for backdoors."""

from bdjax.defenses.scan.method import ScanResult, scan
from bdjax.defenses.scan.search import round_width
from bdjax.defenses.scan.settings import ScanSettings
from bdjax.defenses.scan.verdicts import LEVEL, SHOWN, VERDICTS, Judged

__all__ = [
  "LEVEL",
  "SHOWN",
  "VERDICTS",
  "Judged",
  "ScanResult",
  "ScanSettings",
  "round_width",
  "scan",
]
