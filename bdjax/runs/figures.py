"""Draws the figures of a run and of a defence, by what their results hold."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np

from bdjax import plots
from bdjax.attacks.patches import Trigger, stamp
from bdjax.data import Splits
from bdjax.evaluation import AttackScores, ScoredResults, sample_triggers
from bdjax.runs.directory import figure_path
from bdjax.runs.setup import Setup
from bdjax.runs.train import Trained

EXAMPLES = 8  # images
PATCHES = 12  # triggers a target
SHEET_TARGETS = 10  # targets on the sheet of triggers


def draw_run(
  setup: Setup,
  trained: Trained,
  scores: AttackScores,
  splits: Splits,
  key: jax.Array,
  directory: pathlib.Path,
) -> None:
  """Draw training curves, and with an attack what its triggers do.

  Args:
    setup: of the run.
    trained: from `train`.
    scores: of the trained network.
    splits: examples are the first test images that are not of their target.
    key: of the triggers shown.
    directory: of the run.
  """
  path = figure_path(directory, "training_curves")
  plots.training_curves(path, trained.records)
  attack = setup.attack
  if attack is None:
    return
  names = splits.info.class_names
  targets = np.asarray(attack.targets)
  examples_key, triggers_key = jax.random.split(key)
  _draw_examples(setup, trained, splits, examples_key, directory)
  matrix_path = figure_path(directory, "source_target_matrix")
  plots.source_target_matrix(matrix_path, scores.matrix, targets, names)
  if attack.patch is None or attack.patch.size == splits.test.images.shape[1:3]:
    return
  _, patterns = sample_triggers(
    attack,
    trained.carry.generator.variables,
    triggers_key,
    splits.test.images,
    PATCHES,
  )
  plots.trigger_sheet(
    figure_path(directory, "triggers"),
    patterns[:SHEET_TARGETS],
    targets[:SHEET_TARGETS],
    names,
  )
  plots.regions(
    figure_path(directory, "regions"),
    np.asarray(attack.patch.boxes).reshape(-1, 4),
    np.repeat(targets, attack.patch.boxes.shape[1]),
    names,
    splits.test.images[0],
    max(attack.patch.size),
  )


def _draw_examples(setup, trained, splits, key, directory):
  """Draw an image a column, clean, triggered, and how they differ."""
  attack, carry = setup.attack, trained.carry
  targets, labels = np.asarray(attack.targets), splits.test.labels
  rows, index = _rows_of_targets(attack, labels)
  clean = splits.test.images[rows].astype(np.float32) / np.float32(255)

  @jax.jit
  def classify(weights, variables, key, images, index):
    triggered = attack.test_apply(variables, key, images, index)
    logits, _ = setup.model.apply(*weights, triggered)
    return triggered, logits.argmax(-1)

  triggered, predictions = jax.device_get(
    classify(
      carry.classifier.weights,
      carry.generator.variables,
      key,
      clean,
      np.array(index, np.int32),
    )
  )
  names = splits.info.class_names
  plots.examples(
    figure_path(directory, "examples"),
    clean,
    triggered,
    labels[rows],
    targets[index],
    predictions,
    names,
  )
  if attack.patch is None or attack.patch.size == clean.shape[1:3]:
    titles = [names[target] for target in targets[index]]
    path = figure_path(directory, "triggers")
    plots.trigger_examples(path, clean, triggered, titles)


def _rows_of_targets(attack, labels):
  """Return test images, each with a target that it may have, in turn."""
  counts = np.asarray(attack.eligible(jnp.asarray(labels))).T
  rows, index = [], []
  for row in range(len(labels)):
    i = len(rows) % len(counts)
    if counts[i, row]:
      rows.append(row)
      index.append(i)
    if len(rows) == EXAMPLES:
      break
  return rows, index


def draw_defense(
  scored: ScoredResults,
  class_names: tuple[str, ...],
  sample: np.ndarray,
  directory: pathlib.Path,
) -> None:
  """Draw what each kind of result has to show.

  Args:
    scored: from `evaluation.score_results`.
    class_names: of all classes.
    sample: uint8 [H,W,C], an image of the defender's.
    directory: of the defence.
  """
  for kind, plot in scored.plots:
    if kind == "verdict":
      _draw_verdict(plot["verdict"], class_names, sample, directory)
    elif kind == "path":
      plots.repair_curve(
        figure_path(directory, plot["name"]),
        plot["curves"],
        plot["points"],
        plot["axis"],
      )
    elif kind == "rounds" and len(plot["names"]) > 1:
      path = figure_path(directory, "rounds")
      plots.rounds(path, plot["names"], plot["curves"])
    elif kind == "scores":
      plots.score_histogram(
        figure_path(directory, "scores"),
        plot["samples"],
        plot["thresholds"],
        plot["label"],
      )


def _draw_verdict(verdict, class_names, sample, directory):
  masks, patterns = map(np.asarray, verdict.triggers)
  image = sample[None].astype(np.float32) / np.float32(255)
  plots.reversed_triggers(
    figure_path(directory, "triggers"),
    masks,
    patterns,
    np.asarray(stamp(Trigger(masks, patterns), image)),
    class_names,
    verdict.suspects,
  )
  plots.mask_norms(
    figure_path(directory, "norms"),
    verdict.sizes,
    verdict.index,
    class_names,
    verdict.suspects,
    verdict.threshold,
  )
