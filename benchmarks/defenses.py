"""The time that batching saves the defences, against one thing at a time.

python -m benchmarks.defenses                                   # small CNN
python -m benchmarks.defenses --models=resnet18 --width=16

Initial weights and random images: the costs depend on neither. Ours against
ours: no peers of other libraries.
"""

import numpy as np

from bdjax import compiler
from bdjax.batching import to_float
from bdjax.defenses import strip
from bdjax.defenses.neural_cleanse import searches
from bdjax.defenses.neural_cleanse.schedule import SearchSettings
from benchmarks import neural_cleanse, pruning_curve, script
from benchmarks import strip as strip_benchmark
from benchmarks.timing import Comparison
from tests.defenses import reference_neural_cleanse as reference

FLAGS = {
  "updates": script.Flag(8, "Updates a step of Neural Cleanse.", 1),
  "images": script.Flag(256, "Images of the pruning curve.", 4),
  "inputs": script.Flag(40, "Inputs of STRIP.", 2),
  "overlays": script.Flag(100, "Overlays of each input.", 2),
}


def reversed_triggers(case: script.Case, updates: int) -> Comparison:
  """Compare all classes in one program and the tests' class after class."""
  settings = SearchSettings(steps=2, updates=updates, asr_threshold=1.0)
  images = script.images(settings.updates * settings.batch_size, case)
  state = searches.init(script.KEY, script.CLASSES, case.shape)
  model, weights = script.network(case)
  gradient = reference.make_gradient(model, weights)
  host = np.asarray(images)
  rows = np.arange(len(images)).reshape(settings.updates, -1)

  def one_at_a_time():
    for target in range(script.CLASSES):
      variables = [v[target] for v in state.variables]
      reference.reverse(
        gradient, host, target, settings, variables, lambda step: rows
      )

  return Comparison(
    f"Neural Cleanse, {case}",
    {
      "all classes in one program": neural_cleanse.ours(
        case, settings, images, script.CLASSES
      ),
      "one class after the other": one_at_a_time,
    },
  )


def pruning_curves(case: script.Case, images: int) -> Comparison:
  """Compare all points from one pass and an evaluation for each."""
  task = pruning_curve.PruningTask(case, images, images)
  points = len(task.masks)
  return Comparison(
    f"pruning curve, {case}",
    {
      f"all {points} networks from one pass": pruning_curve.ours(task),
      "one evaluation each": pruning_curve.point_by_point(task, points),
    },
  )


def entropies(case: script.Case, inputs: int, overlays: int) -> Comparison:
  """Compare inputs in chunks, one input, and one overlay at a time."""
  images, pool = script.images(inputs, case), script.images(2 * overlays, case)
  model, weights = script.network(case)
  floats = to_float(images)
  of_input = compiler.jit(strip.entropies(model, overlays, "blend"))

  def blend_entropy(weights, image, overlay):
    mixed = strip.superimpose(image, overlay, "blend")[None]
    return strip.entropy(model.apply(*weights, mixed)[0])

  of_overlay = compiler.jit(blend_entropy)
  split = list(to_float(pool[:overlays]))  # so that slicing is not timed
  return Comparison(
    f"STRIP, {case}",
    {
      f"{inputs} inputs in chunks": strip_benchmark.ours(
        case, images, pool, overlays
      ),
      "one input at a time": lambda: [
        of_input((weights, pool), script.KEY, x[None]) for x in floats
      ],
      "one overlay at a time": lambda: [
        of_overlay(weights, x, overlay) for x in floats for overlay in split
      ],
    },
  )


def comparisons(
  options: script.Options,
  updates: int,
  images: int,
  inputs: int,
  overlays: int,
):
  """Compare the three defences, for each network."""
  for case in script.cases(options):
    yield reversed_triggers(case, updates)
    yield pruning_curves(case, images)
    yield entropies(case, inputs, overlays)


if __name__ == "__main__":
  script.main(comparisons, FLAGS, networks=("cnn",))
