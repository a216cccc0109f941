"""Neural Cleanse: all classes in one program, against torch class by class.

python -m benchmarks.neural_cleanse
python -m benchmarks.neural_cleanse --batch=128 --bf16    # GPU

The same number of steps, updates, images and classes for all; so few steps that
no search ends early. Torch takes the gradient by mask and pattern alone, as
ours does, and reads the success rate once a step. The Neural Cleanse of the
Adversarial Robustness Toolbox is for Keras classifiers of TensorFlow 1 graphs
only, so it is no peer here.

Operations: an update counts two forward passes of its batch for each class:
forward, and backward to the images (the weights need no gradient).
"""

import jax.numpy as jnp

from bdjax import sharding
from bdjax.defenses.neural_cleanse import searches
from bdjax.defenses.neural_cleanse.schedule import SearchSettings
from benchmarks import peers, roofline, script
from benchmarks.plain.networks import forward_operations
from benchmarks.timing import Comparison

FLAGS = {
  "steps": script.Flag(0, "Steps of a search; 0: 2 of cnn, 1 of others.", 1),
  "updates": script.Flag(31, "Updates a step; 31 as in the defence.", 1),
  "batch": script.Flag(32, "Images an update.", 4),
  "classes": script.Flag(0, "Classes; 0: 10 of cnn, 2 of others.", 2),
  "class_batch": script.Flag(
    0, "Classes at a time; 0: the library's default, on a CPU 1."
  ),
}


def ours(case, settings, images, classes, class_batch=0):
  """Make our searches of the first `classes` classes, to their end."""
  model, weights = script.network(case)
  default = searches.max_searches(case.shape, settings.batch_size)
  call = searches.compile_search_steps(
    model,
    settings,
    sharding.make_mesh(),
    class_batch=class_batch or min(default, classes),
    steps_per_call=settings.steps,
  )
  state = searches.init(script.KEY, classes, case.shape)
  targets = jnp.arange(classes)
  return lambda: call(weights, script.KEY, images, targets, state)


def torch_peers(case, settings, images, classes):
  """Make one search after the other, in two layouts; none without torch."""
  peer = peers.load("neural_cleanse")
  if peer is None:
    return {}
  networks = peers.load("networks")
  _, weights = script.network(case)
  variables = searches.init(script.KEY, classes, case.shape).variables
  functions = {}
  for name, last in (("eager", False), ("channels_last", True)):
    net = networks.make(case, script.CLASSES, weights, last)
    functions[f"torch, class by class, {name}"] = peer.searches(
      net, images, variables, settings, channels_last=last, bf16=case.bf16
    )
  return functions


def compare(
  case: script.Case,
  settings: SearchSettings,
  classes: int,
  class_batch: int = 0,
) -> Comparison:
  """Compare one network's searches by us and by the peers."""
  count = settings.updates * settings.batch_size
  images = script.images(count, case)
  _, weights = script.network(case)
  forward = forward_operations(case, script.CLASSES)
  return Comparison(
    f"Neural Cleanse, {case}, {classes} classes, {settings.steps} steps of "
    f"{settings.updates} x {settings.batch_size} images",
    {
      "ours, all classes in one call": ours(
        case, settings, images, classes, class_batch
      ),
      **torch_peers(case, settings, images, classes),
    },
    item="update of a class",
    items=classes * settings.steps * settings.updates,
    operations=2 * forward * count * settings.steps * classes,
    traffic=roofline.size(images, weights),
  )


def comparisons(
  options: script.Options,
  steps: int,
  updates: int,
  batch: int,
  classes: int,
  class_batch: int,
):
  """Compare each network's searches."""
  for case in script.cases(options):
    small = case.model == "cnn"
    settings = SearchSettings(
      steps=steps or (2 if small else 1),
      updates=updates,
      batch_size=batch,
      asr_threshold=1.0,
    )
    default = 10 if small else 2
    yield compare(case, settings, classes or default, class_batch)


if __name__ == "__main__":
  script.main(comparisons, FLAGS)
