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

import jax
import jax.numpy as jnp

from bdjax import sharding
from bdjax.defenses import neural_cleanse
from benchmarks import peers, roofline, script
from benchmarks.plain.networks import forward_operations
from benchmarks.timing import Comparison


def ours(case, settings, images, classes, class_batch=0):
  """Our searches of the first `classes` classes, to their end."""
  model, weights = script.network(case)
  if not class_batch:
    class_batch = 1 if jax.default_backend() == "cpu" else classes
  call = neural_cleanse.make_call(
    model,
    settings,
    sharding.make_mesh(),
    class_batch=class_batch,
    stretch=settings.steps,
  )
  state = neural_cleanse.init(script.KEY, classes, case.shape)
  targets = jnp.arange(classes)
  return lambda: call(weights, script.KEY, images, targets, state)


def torch_peers(case, settings, images, classes):
  """One search after the other, in two layouts."""
  peer = peers.load("neural_cleanse")
  if peer is None:
    return {}
  networks = peers.load("networks")
  _, weights = script.network(case)
  start = neural_cleanse.init(script.KEY, classes, case.shape).variables
  out = {}
  for name, last in (("eager", False), ("channels_last", True)):
    net = networks.make(case, script.CLASSES, weights, last)
    out[f"torch, class by class, {name}"] = peer.searches(
      net, images, start, settings, channels_last=last, bf16=case.bf16
    )
  return out


def compare(
  case: script.Case,
  settings: neural_cleanse.Settings,
  classes: int,
  class_batch: int = 0,
) -> Comparison:
  """One network's searches beside its peers'."""
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
  setting: script.Setting,
  steps: int,
  updates: int,
  batch: int,
  classes: int,
  class_batch: int,
):
  """For each network."""
  for case in script.cases(setting):
    small = case.model == "cnn"
    settings = neural_cleanse.Settings(
      steps=steps or (2 if small else 1),
      updates=updates,
      batch_size=batch,
      asr_threshold=1.0,
    )
    default = 10 if small else 2
    yield compare(case, settings, classes or default, class_batch)


if __name__ == "__main__":
  script.main(
    comparisons,
    steps=(0, "Of a search; 0: 2 of cnn, 1 of others."),
    updates=(31, "A step; 31 as in the defence."),
    batch=(32, "Images an update."),
    classes=(0, "0: 10 of cnn, 2 of others."),
    class_batch=(0, "Classes at a time; 0: 1 on a CPU, else all."),
  )
