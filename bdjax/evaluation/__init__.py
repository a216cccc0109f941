"""The only scorer: of attacks, and of each kind of result of a defence."""

from bdjax.evaluation.attack_scores import (
  AttackScores,
  attack_scores,
  compile_predictors,
  sample_triggers,
  trigger_diversity,
)
from bdjax.evaluation.heldout import (
  HeldOutEvaluator,
  TriggeredOutputs,
  TriggeredSet,
  share,
)
from bdjax.evaluation.predictions import (
  over_triggered,
  predict_draws,
  predict_triggered,
)
from bdjax.evaluation.results import score_results
from bdjax.evaluation.scored import Original, ScoredResults

__all__ = [
  "AttackScores",
  "HeldOutEvaluator",
  "Original",
  "ScoredResults",
  "TriggeredOutputs",
  "TriggeredSet",
  "attack_scores",
  "compile_predictors",
  "over_triggered",
  "predict_draws",
  "predict_triggered",
  "sample_triggers",
  "score_results",
  "share",
  "trigger_diversity",
]
