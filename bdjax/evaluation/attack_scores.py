"""Scores of a trained classifier and its backdoor on the test set."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bdjax import batching, metrics, sharding
from bdjax.attacks.base import Attack, TriggerVariables
from bdjax.data import Dataset
from bdjax.evaluation.predictions import predict_draws, predict_triggered
from bdjax.models import Model, Weights

BATCH_SIZE = 512  # images; on CPU near the cache, on GPU large enough


class AttackScores(NamedTuple):
  """Scores of one trained network, as they go into `results.json`.

  Attributes:
    measured: name -> `metrics.Score`: `clean_accuracy`, and with an attack
      `attack_success_rate`, `robust_accuracy` and, where it has covers,
      `cover_accuracy`.
    details: per target and per draw, JSON-ready.
    matrix: float [T,K] ASR from source to target; None without an attack.
  """

  measured: dict[str, metrics.Score]
  details: dict[str, Any]
  matrix: np.ndarray | None


class Predictors(NamedTuple):
  """Compiled predictions of a model, clean, triggered and of covers."""

  clean: Callable
  triggered: Callable | None
  covers: Callable | None


def compile_predictors(
  model: Model,
  attack: Attack | None,
  mesh: jax.sharding.Mesh,
  batch_size: int = BATCH_SIZE,
) -> Predictors:
  """Compile what `attack_scores` needs; shared by runs of one program.

  Args:
    model: the classifier.
    attack: None for a clean network.
    mesh: where a batch is cut along.
    batch_size: images at a time.
  """
  clean = batching.predict(model, batch_size, mesh)
  if attack is None:
    return Predictors(clean, None, None)
  triggered = functools.partial(
    predict_triggered, model, attack, batch_size, mesh
  )
  covers = triggered(attack.cover) if attack.cover is not None else None
  return Predictors(clean, triggered(), covers)


def attack_scores(
  key: jax.Array,
  model: Model,
  weights: Weights,
  test: Dataset,
  num_classes: int,
  attack: Attack | None = None,
  variables: TriggerVariables | None = None,
  *,
  draws: int = 1,
  predictors: Predictors | None = None,
  mesh: jax.sharding.Mesh | None = None,
) -> AttackScores:
  """Score clean accuracy, and with an attack its success on every target.

  Clean accuracy is over the whole test set. The attack success rate counts only
  images whose true label is not the target, each with triggers drawn after
  training; robust accuracy is the share of those that still get their true
  label; cover accuracy that of images that may be covers, under their trigger.

  Args:
    key: of the triggers; not the training's.
    model: the classifier.
    weights: of the classifier.
    test: test images uint8 [N,H,W,C] and labels.
    num_classes: K.
    attack: None for a clean network.
    variables: of the attack.
    draws: triggers an image and target.
    predictors: from `compile_predictors`; compiled here by default.
    mesh: by default all devices.
  """
  mesh = mesh or sharding.make_mesh()
  predictors = predictors or compile_predictors(model, attack, mesh)
  images = sharding.replicate(mesh, test.images)
  clean = metrics.accuracy(
    np.asarray(predictors.clean(weights, images)), test.labels
  )
  measured = {"clean_accuracy": metrics.proportion(clean, len(test.labels))}
  if attack is None:
    return AttackScores(measured, {}, None)
  variables = variables or TriggerVariables({}, {})
  targets = np.asarray(attack.targets)
  draw_key, diversity_key = jax.random.split(key)
  predictions = predict_draws(
    predictors.triggered,
    weights,
    variables,
    draw_key,
    images,
    len(targets),
    draws,
  )
  counts = np.asarray(attack.eligible(jnp.asarray(test.labels))).T
  triggered, details = _triggered_scores(
    predictions, test.labels, targets, counts
  )
  measured |= triggered
  if predictors.covers is not None:
    cover_key = jax.random.fold_in(key, 2)  # 0 and 1 are the two above
    covers = predictors.covers(
      weights, variables, cover_key, images, jnp.int32(0)
    )
    counted = np.asarray(attack.coverable(jnp.asarray(test.labels)))
    share = metrics.accuracy(np.asarray(covers)[counted], test.labels[counted])
    measured["cover_accuracy"] = metrics.proportion(share, int(counted.sum()))
  if attack.draw_trigger is not None:
    details["trigger_diversity"] = trigger_diversity(
      attack, variables, diversity_key, test.images
    )
  matrix = metrics.success_matrix(
    predictions, test.labels, targets, counts, num_classes
  )
  details["source_target_matrix"] = [
    [None if np.isnan(value) else float(value) for value in row]
    for row in matrix
  ]
  return AttackScores(measured, details, matrix)


def _triggered_scores(predictions, labels, targets, counts):
  """Return ASR and robust accuracy as scores, and each per target and draw."""
  measured = {}
  details = {"target_labels": targets.tolist()}
  counted = int(counts.any(0).sum())
  for name, values in (  # [D,T]
    (
      "attack_success_rate",
      metrics.attack_success_rate(predictions, targets, counts),
    ),
    ("robust_accuracy", metrics.robust_accuracy(predictions, labels, counts)),
  ):
    measured[name] = metrics.proportion(float(values.mean()), counted)
    details[f"{name}_per_target"] = values.mean(0).tolist()
    details[f"{name}_per_draw"] = values.mean(1).tolist()
  return measured, details


def sample_triggers(
  attack: Attack,
  variables: TriggerVariables,
  key: jax.Array,
  images: np.ndarray,
  draws: int,
) -> tuple[np.ndarray, np.ndarray]:
  """Draw triggers for every target.

  Args:
    attack: one that has `draw_trigger`.
    variables: of the attack.
    key: a random key.
    images: uint8 [N,H,W,C], which input-aware triggers are made for, in turn.
    draws: triggers a target.

  Returns:
    Masks float32 [T,draws,h,w,1] and patterns float32 [T,draws,h,w,C].
  """
  num = attack.targets.shape[0]
  index = jnp.repeat(jnp.arange(num, dtype=jnp.int32), draws)
  rows = np.arange(num * draws) % len(images)
  inputs = images[rows].astype(np.float32) / np.float32(255)
  mask, pattern = jax.jit(attack.draw_trigger)(variables, key, inputs, index)
  return tuple(
    np.asarray(x).reshape(num, draws, *x.shape[1:]) for x in (mask, pattern)
  )


def trigger_diversity(
  attack: Attack,
  variables: TriggerVariables,
  key: jax.Array,
  images: np.ndarray,
  draws: int = 256,
) -> float:
  """Compute how much the triggers of one target differ from draw to draw.

  The root mean square difference of two draws, over that of two U[0,1] draws,
  pixels weighted by the mean mask. 0: one fixed trigger; 1: random pixels.

  Args: as of `sample_triggers`.
  """
  masks, patterns = sample_triggers(attack, variables, key, images, draws)
  # Two draws differ by twice the variance in the mean square; U[0,1]'s is 1/12.
  variance = patterns.var(1)
  weights = np.broadcast_to(masks.mean(1), variance.shape)
  if not weights.any():
    return 0.0  # nothing is laid over the image
  return float(np.sqrt(12 * (weights * variance).sum() / weights.sum()))
