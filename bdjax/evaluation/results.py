"""Scores of a defence's results: one scorer for each kind of result."""

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from bdjax import compiler, metrics
from bdjax.batch import POISONED
from bdjax.batching import predictions, to_float
from bdjax.defenses.base import (
  InputDetector,
  Repair,
  RepairPath,
  Results,
  SampleScores,
  TrainedNetwork,
  Verdict,
)
from bdjax.evaluation.heldout import HeldOutEvaluator, share
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


def score_results(
  results: Results, evaluator: HeldOutEvaluator, original: Original
) -> ScoredResults:
  """Score each result of a defence on held-out images.

  Args:
    results: what the defence returned.
    evaluator: of the run.
    original: the network before the defence.

  Raises:
    UserError: a result cannot be scored, as sample scores without roles.
  """
  scored = ScoredResults({}, {}, [])
  networks = [r for r in results if isinstance(r, Repair | TrainedNetwork)]
  for result in results:
    score = _SCORERS.get(type(result))
    if score is not None:
      score(result, evaluator, original, scored)
  if networks:
    _score_networks(networks, evaluator, original, scored)
  return scored


def _named(name: str, suffix: str) -> str:
  return f"{name}_{suffix}" if suffix else name


def _effectiveness(before, after) -> float:
  """Compute the DER of two dicts of scores; both with an attack."""
  pair = [
    (s["clean_accuracy"].mean, s["attack_success_rate"].mean)
    for s in (before, after)
  ]
  return metrics.defense_effectiveness_rate(*pair)


def _score_networks(networks, evaluator, original, scored) -> None:
  """Score repaired networks one after the other, the original before."""
  before = evaluator.scores(original.model, original.weights)
  rows = []
  for network in networks:
    name = network.name
    scores = before
    if name != "before":
      scores = evaluator.scores(network.model, network.weights)
    means = {title: score.mean for title, score in scores.items()}
    rows.append({"name": name, **means, **network.details})
    if getattr(network, "step", False):
      continue
    scored.measured.update({_named(t, name): s for t, s in scores.items()})
    if evaluator.has_attack and name != "before":
      key = _named("defense_effectiveness_rate", name)
      scored.measured[key] = _effectiveness(before, scores)
  scored.details["networks"] = rows
  curves = {"clean accuracy": [row["clean_accuracy"] for row in rows]}
  if evaluator.has_attack:
    curves["attack success rate"] = [r["attack_success_rate"] for r in rows]
  names = [network.name for network in networks]
  scored.plots.append(("rounds", {"names": names, "curves": curves}))


def _score_path(path: RepairPath, evaluator, original, scored) -> None:
  """Score the chosen networks of a path, and draw all of it."""
  clean = _columns(evaluator.on_clean(path.answer, path.args, path.batch_size))
  right = clean == evaluator.labels[:, None]
  curves = {"clean accuracy": right.mean(0)}
  triggered = None
  if evaluator.has_attack:
    triggered = evaluator.on_triggered(path.answer, path.args, path.batch_size)
    triggered = triggered._replace(outputs=_columns(triggered.outputs))
    hits = triggered.outputs == triggered.targets[:, None]
    curves["attack success rate"] = hits.mean(0)
  measured = scored.measured
  before = None
  if triggered is not None and not path.refuses:
    before = evaluator.scores(original.model, original.weights)
  for name, at in path.points.items():
    scores = {"clean_accuracy": share(right[:, at])}
    if triggered is not None:
      scores |= evaluator.shares("attack_success_rate", hits[:, at])
      if evaluator.knows_labels:
        same = triggered.outputs[:, at] == triggered.labels
        scores["robust_accuracy"] = share(same)
    if path.refuses:
      scores |= _refusals(
        clean[:, at], right[:, at], triggered, at, evaluator, original
      )
    measured.update({_named(t, name): s for t, s in scores.items()})
    if before is not None:
      key = _named("defense_effectiveness_rate", name)
      measured[key] = _effectiveness(before, scores)
  scored.details.update(path.details)
  scored.details.update({t: v.tolist() for t, v in curves.items()})
  if clean.shape[1] > 1:
    curves |= path.curves
    plot = {"curves": curves, "points": path.points, "axis": path.axis}
    scored.plots.append(("path", plot | {"name": path.name}))


def _columns(answers: np.ndarray) -> np.ndarray:
  """Make answers [N] a column, and leave [N,P] alone."""
  return answers.reshape(len(answers), -1)


def _refusals(clean, right, triggered, at, evaluator, original):
  """Score how many clean images are refused, and triggered ones answered."""
  refused = original.num_classes
  scores = {"frr": share(clean == refused)}
  if triggered is None:
    return scores
  answers = triggered.outputs[:, at]
  scores |= evaluator.shares("far", answers != refused)
  if evaluator.knows_labels:
    # Right is the true class, and for triggered images also to refuse.
    good = (answers == refused) | (answers == triggered.labels)
    scores["triggered_accuracy"] = share(good)
    scores["mixed_accuracy"] = metrics.proportion(
      float(np.concatenate([right, good]).mean()), len(right)
    )
  return scores


def _score_detector(detector: InputDetector, evaluator, original, scored):
  """Score what an input detector rejects and accepts."""
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


def _latency(detector, evaluator, original) -> dict[str, metrics.Score]:
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


def _score_samples(result: SampleScores, evaluator, original, scored) -> None:
  """Score which training images were flagged, and whether rightly."""
  del evaluator
  scored.details.update(result.details)
  scored.measured["flagged_share"] = share(np.asarray(result.flagged))
  if original.roles is None or not (original.roles == POISONED).any():
    return
  poisoned = original.roles == POISONED
  scores, flagged = np.asarray(result.scores), np.asarray(result.flagged)
  over = "training images"
  scored.measured["auroc"] = metrics.auroc(
    scores[~poisoned], scores[poisoned], over
  )
  for name, mask in (("tpr", poisoned), ("fpr", ~poisoned)):
    hits = flagged[mask]
    scored.measured[name] = metrics.proportion(
      float(hits.mean()), len(hits), over
    )


def _score_verdict(verdict: Verdict, evaluator, original, scored) -> None:
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


_SCORERS: dict[type, Callable] = {
  RepairPath: _score_path,
  InputDetector: _score_detector,
  SampleScores: _score_samples,
  Verdict: _score_verdict,
}
