"""Draws the figures of a run; what is drawn is computed here."""

import pathlib

import jax
import numpy as np

from bdjax import evaluation, plots
from bdjax.data import Splits
from experiments.common.program import Program
from experiments.common.scores import Evaluation, sample_patches
from experiments.common.train import Trained

EXAMPLES = 8  # images
PATCHES = 12  # triggers a target
SHEET_TARGETS = 10  # targets on the sheet of triggers


def draw(
  program: Program,
  trained: Trained,
  found: Evaluation,
  splits: Splits,
  key: jax.Array,
  directory: pathlib.Path,
) -> None:
  """Writes `figures/`: curves, and with an attack what its triggers do.

  Args:
    program: from `build`.
    trained: from `train`.
    found: from `evaluate`.
    splits: examples are the first test images that are not of their target.
    key: of the triggers shown.
    directory: of the run.
  """
  folder = directory / "figures"
  folder.mkdir(exist_ok=True)
  plots.training_curves(folder / "training_curves.png", trained.records)
  if program.attack is None:
    return
  names = splits.info.class_names
  examples_key, triggers_key = jax.random.split(key)
  targets = np.asarray(program.attack.targets)
  _draw_examples(
    program, trained, splits, examples_key, folder / "examples.png"
  )
  _draw_triggers(program, trained, names, triggers_key, folder / "triggers.png")
  plots.regions(
    folder / "regions.png",
    np.asarray(program.attack.boxes).reshape(-1, 4),
    np.repeat(targets, program.attack.boxes.shape[1]),
    names,
    splits.test.images[0],
    program.attack.trigger_size,
  )
  plots.source_target_matrix(
    folder / "source_target_matrix.png", found.matrix, targets, names
  )


def _draw_examples(program, trained, splits, key, path):
  """One image a column: clean above, triggered and its prediction below."""
  attack, carry = program.attack, trained.carry
  targets = np.asarray(attack.targets)
  labels = splits.test.labels
  counts = np.asarray(attack.eligible(labels)).T
  rows, index = [], []
  for row in range(len(labels)):
    i = len(rows) % len(targets)
    if counts[i, row]:
      rows.append(row)
      index.append(i)
    if len(rows) == EXAMPLES:
      break
  clean = splits.test.images[rows].astype(np.float32) / 255.0

  @jax.jit
  def classify(state, generator, key, images, index):
    triggered = evaluation.sample_triggered(
      attack, generator.params, key, images, index
    )
    logits, _ = program.model.apply(
      state.params, state.batch_stats, triggered, False
    )
    return triggered, logits.argmax(-1)

  triggered, predictions = jax.device_get(
    classify(*carry, key, clean, np.array(index, np.int32))
  )
  plots.examples(
    path,
    clean,
    triggered,
    labels[rows],
    targets[index],
    predictions,
    splits.info.class_names,
  )


def _draw_triggers(program, trained, names, key, path):
  patches = sample_patches(program, trained.carry, key, PATCHES)
  targets = np.asarray(program.attack.targets)
  plots.trigger_sheet(
    path, patches[:SHEET_TARGETS], targets[:SHEET_TARGETS], names
  )
