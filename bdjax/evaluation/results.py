"""Scores of a defence's results: one scorer for each kind of result."""

from collections.abc import Callable

from bdjax.defenses.base import (
  InputDetector,
  Repair,
  RepairPath,
  Results,
  SampleScores,
  TrainedNetwork,
  Verdict,
)
from bdjax.evaluation.detector_scores import (
  score_detector,
  score_samples,
  score_verdict,
)
from bdjax.evaluation.heldout import HeldOutEvaluator
from bdjax.evaluation.network_scores import score_networks, score_path
from bdjax.evaluation.scored import Original, ScoredResults

_SCORERS: dict[type, Callable] = {
  RepairPath: score_path,
  InputDetector: score_detector,
  SampleScores: score_samples,
  Verdict: score_verdict,
}


def score_results(
  results: Results, evaluator: HeldOutEvaluator, original: Original
) -> ScoredResults:
  """Score each result of a defence on held-out images.

  Args:
    results: what the defence returned.
    evaluator: of the run.
    original: the network before the defence.

  Raises:
    UserError: none of the test images drawn can be triggered.
  """
  scored = ScoredResults({}, {}, [])
  networks = [r for r in results if isinstance(r, Repair | TrainedNetwork)]
  for result in results:
    score = _SCORERS.get(type(result))
    if score is not None:
      score(result, evaluator, original, scored)
  if networks:
    score_networks(networks, evaluator, original, scored)
  return scored
