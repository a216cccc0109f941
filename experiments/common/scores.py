"""Evaluates a trained run on the test set."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bdjax import evaluation, metrics, sharding, training
from bdjax.data import Splits
from experiments.common.program import Program


class Evaluation(NamedTuple):
  """Scores of one run, as they go into `results.json`.

  Attributes:
    measured: name -> `metrics.Score`.
    details: per target and per draw figures, JSON-ready.
    matrix: float [T,K] ASR from source to target; None for a clean run.
    predictions: int32 [N], of the clean test images.
  """

  measured: dict[str, metrics.Score]
  details: dict[str, Any]
  matrix: np.ndarray | None
  predictions: np.ndarray


def evaluate(
  program: Program, carry: training.Carry, splits: Splits, key: jax.Array
) -> Evaluation:
  """Clean accuracy, and with an attack its success on every target.

  Args:
    program: from `build`.
    carry: the trained states.
    splits: the test images are used, and nothing else.
    key: of the triggers; not the training's.
  """
  test, state = splits.test, carry.state
  images = sharding.replicate(program.mesh, test.images)
  predictions = np.asarray(
    program.predict(state.params, state.batch_stats, images)
  )
  clean = metrics.accuracy(predictions, test.labels)
  measured = {"clean_accuracy": metrics.proportion(clean, len(test.labels))}
  if program.attack is None:
    return Evaluation(measured, {}, None, predictions)

  targets = np.asarray(program.attack.targets)
  draw_key, diversity_key = jax.random.split(key)
  triggered = evaluation.triggered_predictions(
    program.predict_triggered,
    state.params,
    state.batch_stats,
    carry.generator.params,
    draw_key,
    images,
    len(targets),
    program.config.eval_draws,
  )
  counts = np.asarray(program.attack.eligible(test.labels)).T
  scores = {  # [D,T]
    "attack_success_rate": metrics.attack_success_rate(
      triggered, targets, counts
    ),
    "robust_accuracy": metrics.robust_accuracy(triggered, test.labels, counts),
  }
  details = {"target_labels": targets.tolist()}
  counted = int(counts.any(0).sum())
  for name, values in scores.items():
    measured[name] = metrics.proportion(float(values.mean()), counted)
    details[f"{name}_per_target"] = values.mean(0).tolist()
    details[f"{name}_per_draw"] = values.mean(1).tolist()
  details["trigger_diversity"] = trigger_diversity(
    program, carry, diversity_key
  )
  matrix = metrics.success_matrix(
    triggered, test.labels, targets, counts, splits.info.num_classes
  )
  details["source_target_matrix"] = [
    [None if np.isnan(value) else float(value) for value in row]
    for row in matrix
  ]
  return Evaluation(measured, details, matrix, predictions)


def trigger_diversity(
  program: Program, carry: training.Carry, key: jax.Array, draws: int = 256
) -> float:
  """How much the triggers of one target differ from draw to draw.

  In the unit of `--diversity`: the root mean square difference of two draws,
  over that of two U[0,1] draws. 0: the generator makes one fixed trigger.
  """
  patches = sample_patches(program, carry, key, draws)
  # Two draws differ by twice the variance in the mean square; U[0,1]'s is 1/12.
  return float(np.sqrt(12 * patches.var(1).mean()))


def sample_patches(
  program: Program, carry: training.Carry, key: jax.Array, draws: int
) -> np.ndarray:
  """Fresh triggers for every target: float32 [T,draws,s,s,C]."""
  attack = program.attack
  num = attack.targets.shape[0]
  index = jnp.repeat(jnp.arange(num, dtype=jnp.int32), draws)
  patches = jax.jit(attack.patches)(carry.generator.params, key, index)
  return np.asarray(patches).reshape(num, draws, *patches.shape[1:])
