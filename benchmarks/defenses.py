"""What batching the defences saves, against doing one thing at a time.

python -m benchmarks.defenses                                   # small CNN
python -m benchmarks.defenses --models=resnet18 --width=16

Fresh weights and random images: the costs depend on neither. Ours against
ours: no peers of other libraries.
"""

import jax.numpy as jnp
import numpy as np

from bdjax import compiler
from bdjax.defenses import neural_cleanse as nc
from bdjax.defenses import strip
from benchmarks import neural_cleanse, pruning_curve, script
from benchmarks import strip as strip_benchmark
from benchmarks.timing import Comparison
from tests.defenses import reference_neural_cleanse as reference


def reversed_triggers(case: script.Case) -> Comparison:
  """All classes in one program, against the tests' class after class."""
  settings = nc.Settings(steps=2, updates=8, asr_threshold=1.0)
  images = script.images(settings.updates * settings.batch_size, case)
  state = nc.init(script.KEY, script.CLASSES, case.shape)
  model, weights = script.network(case)
  gradient = reference.make_gradient(model, weights)
  host = np.asarray(images)
  rows = np.arange(len(images)).reshape(settings.updates, -1)

  def one_at_a_time():
    for target in range(script.CLASSES):
      start = [v[target] for v in state.variables]
      reference.reverse(
        gradient, host, target, settings, start, lambda step: rows
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


def pruning_curves(case: script.Case) -> Comparison:
  """All prefixes from one pass, against an evaluation for each."""
  subject = pruning_curve.Subject(case, 256, 256)
  points = len(subject.masks)
  return Comparison(
    f"pruning curve, {case}",
    {
      f"all {points} networks from one pass": pruning_curve.ours(subject),
      "one evaluation each": pruning_curve.point_by_point(subject, points),
    },
  )


def entropies(case: script.Case) -> Comparison:
  """Inputs in chunks, against one input, and one overlay, at a time."""
  settings = strip.Settings(superimpose="blend")
  images, pool = script.images(40, case), script.images(200, case)
  model, weights = script.network(case)
  floats = images.astype(jnp.float32) / 255.0
  each = compiler.jit(strip.entropies(model, settings))
  one = compiler.jit(
    lambda weights, image, overlay: strip.entropy(
      model.apply(
        *weights, strip.superimpose(image, overlay, "blend")[None], False
      )[0]
    )
  )
  overlays = pool[: settings.overlays].astype(jnp.float32) / 255.0
  split = list(overlays)  # so that slicing is not what is timed
  return Comparison(
    f"STRIP, {case}",
    {
      "40 inputs in chunks": strip_benchmark.ours(
        case, images, pool, settings.overlays
      ),
      "one input at a time": lambda: [
        each((weights, pool), script.KEY, x[None]) for x in floats
      ],
      "one overlay at a time": lambda: [
        one(weights, x, overlay) for x in floats for overlay in split
      ],
    },
  )


def comparisons(setting: script.Setting):
  """The three, for each network."""
  for case in script.cases(setting):
    yield reversed_triggers(case)
    yield pruning_curves(case)
    yield entropies(case)


if __name__ == "__main__":
  script.main(comparisons, networks=("cnn",))
