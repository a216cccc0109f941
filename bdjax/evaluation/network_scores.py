"""Scores of networks that a defence changed or trained."""

from collections.abc import Sequence

import numpy as np

from bdjax import metrics
from bdjax.defenses.base import Repair, RepairPath, TrainedNetwork
from bdjax.evaluation.heldout import HeldOutEvaluator, share
from bdjax.evaluation.scored import Original, ScoredResults


def _named(name: str, suffix: str) -> str:
  return f"{name}_{suffix}" if suffix else name


def _effectiveness(before, after) -> float:
  """Compute the DER of two dicts of scores; both with an attack."""
  pair = [
    (s["clean_accuracy"].mean, s["attack_success_rate"].mean)
    for s in (before, after)
  ]
  return metrics.defense_effectiveness_rate(*pair)


def score_networks(
  networks: Sequence[Repair | TrainedNetwork],
  evaluator: HeldOutEvaluator,
  original: Original,
  scored: ScoredResults,
) -> None:
  """Score networks one after the other, and the original, into `scored`."""
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


def score_path(
  path: RepairPath,
  evaluator: HeldOutEvaluator,
  original: Original,
  scored: ScoredResults,
) -> None:
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
