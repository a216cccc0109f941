"""Scores of detectors: of inputs, of training images and of networks."""

import time
from collections.abc import Callable

import jax
import numpy as np

from bdjax import compiler, metrics
from bdjax.batch import POISONED
from bdjax.batching import predictions, to_float
from bdjax.defenses.base import InputDetector, SampleScores, Verdict
from bdjax.evaluation.heldout import HeldOutEvaluator, share
from bdjax.evaluation.scored import Original, ScoredResults


def score_detector(
  detector: InputDetector,
  evaluator: HeldOutEvaluator,
  original: Original,
  scored: ScoredResults,
) -> None:
  """Score what an input detector rejects and accepts, into `scored`."""
  predict = predictions(original.model)

  def function(args, key, images):
    weights, own = args
    return detector.score(own, key, images), predict(weights, key, images)

  args = original.weights, detector.args
  clean, _ = evaluator.on_clean(function, args, detector.batch_size)
  samples = {"calibration": detector.calibration, "clean": clean}
  triggered = None
  if evaluator.has_attack:
    seen = evaluator.on_triggered(function, args, detector.batch_size)
    triggered, labels = seen.outputs
    hits = labels == seen.targets
    samples["triggered"] = triggered
  measured = scored.measured
  for rate, threshold in detector.thresholds.items():
    name = f"at_{rate:g}"
    measured[f"frr_{name}"] = share(clean > threshold)
    if triggered is not None:
      passed = triggered <= threshold
      measured |= evaluator.shares(f"far_{name}", passed)
      # Of the images that pass, not all reach the target.
      asr = evaluator.shares(f"attack_success_rate_{name}", passed & hits)
      measured |= asr
  if triggered is not None:
    measured["auroc"] = metrics.auroc(-triggered, -clean)
  for name, values in samples.items():
    measured[f"score_mean_{name}"] = float(values.mean())
    deviation = float(values.std(ddof=1)) if len(values) > 1 else 0.0
    measured[f"score_sd_{name}"] = deviation
    scored.details[f"images_{name}"] = len(values)
  thresholds = {f"{k:g}": v for k, v in detector.thresholds.items()}
  scored.details.update(detector.details | {"thresholds": thresholds})
  measured |= _latency(detector, evaluator, original)
  plot = {"samples": samples, "thresholds": thresholds, "label": detector.unit}
  scored.plots.append(("scores", plot))


def _latency(detector, evaluator, original) -> dict[str, float]:
  """Time an image without the detector and with it: medians of five."""
  # As many at a time as in scoring: that much memory is there.
  images = to_float(evaluator.images[: detector.batch_size])
  predict = predictions(original.model)

  def guard(weights, args, images):
    key = jax.random.key(0)
    return predict(weights, key, images), detector.score(args, key, images)

  plain, guarded = compiler.jit(predict), compiler.jit(guard)
  key = jax.random.key(0)
  return {
    "plain_ms_an_image": _median_ms(
      lambda: plain(original.weights, key, images), len(images)
    ),
    "guarded_ms_an_image": _median_ms(
      lambda: guarded(original.weights, detector.args, images), len(images)
    ),
  }


def _median_ms(call: Callable, images: int) -> float:
  jax.block_until_ready(call())
  seconds = []
  for _ in range(5):
    begin = time.perf_counter()
    jax.block_until_ready(call())
    seconds.append(time.perf_counter() - begin)
  return 1e3 * float(np.median(seconds)) / images


def score_samples(
  result: SampleScores,
  evaluator: HeldOutEvaluator,
  original: Original,
  scored: ScoredResults,
) -> None:
  """Score which training images were flagged, and whether rightly.

  Without a poisoned set only the share that was flagged is known.
  """
  del evaluator
  over = "training images"
  flagged = np.asarray(result.flagged)
  scored.details.update(result.details)
  scored.measured["flagged_share"] = metrics.proportion(
    float(flagged.mean()), len(flagged), over
  )
  if original.roles is None or not (original.roles == POISONED).any():
    return
  poisoned = original.roles == POISONED
  scores = np.asarray(result.scores)
  scored.measured["auroc"] = metrics.auroc(
    scores[~poisoned], scores[poisoned], over
  )
  for name, mask in (("tpr", poisoned), ("fpr", ~poisoned)):
    hits = flagged[mask]
    scored.measured[name] = metrics.proportion(
      float(hits.mean()), len(hits), over
    )


def score_verdict(
  verdict: Verdict,
  evaluator: HeldOutEvaluator,
  original: Original,
  scored: ScoredResults,
) -> None:
  """Score the targets found and the innocent classes accused."""
  suspects = list(map(int, verdict.suspects))
  measured = scored.measured
  measured["flagged"] = suspects
  measured["anomaly_index"] = _finite(verdict.index)
  if verdict.sizes is not None:
    measured["mask_norm"] = _finite(verdict.sizes)
  if verdict.p_values is not None:
    measured["p_values"] = _finite(verdict.p_values)
  measured["largest_index"] = float(verdict.statistic)
  others = set(range(original.num_classes)) - set(evaluator.targets)
  for name, labels in (
    ("detection_rate", evaluator.targets),
    ("false_alarm_rate", sorted(others)),
  ):
    if labels:
      part = sum(label in suspects for label in labels) / len(labels)
      measured[name] = metrics.proportion(part, len(labels), "labels")
  scored.details.update(verdict.details)
  if verdict.triggers is not None:
    scored.plots.append(("verdict", {"verdict": verdict}))


def _finite(values) -> list[float | None]:
  """Return values as JSON holds them: None for what is not finite."""
  return [float(v) if np.isfinite(v) else None for v in values]
