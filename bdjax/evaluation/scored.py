"""The types of `results.score_results`: what it scores and returns."""

from typing import Any, NamedTuple

import numpy as np

from bdjax.models import Model, Weights


class Original(NamedTuple):
  """The network before the defence, and what its training set held.

  Attributes:
    model: the definition.
    weights: of the network.
    num_classes: K.
    roles: int8 [M], roles of the training images, of `bdjax.batch`; None where
      the attack leaves no poisoned set.
  """

  model: Model
  weights: Weights
  num_classes: int
  roles: np.ndarray | None = None


class ScoredResults(NamedTuple):
  """What was measured of a defence.

  Attributes:
    measured: name -> `metrics.Score`, a number, or a list by class.
    details: JSON-ready.
    plots: the data of figures, by kind; see `bdjax.runs.figures`.
  """

  measured: dict[str, Any]
  details: dict[str, Any]
  plots: list[tuple[str, dict[str, Any]]]
