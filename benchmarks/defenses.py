"""What batching the defences saves, against doing one thing at a time.

python -m benchmarks.defenses                                   # small CNN
python -m benchmarks.defenses --model=resnet18 --width=16 --size=32

Fresh weights and random images: the costs depend on neither.
"""

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags

from bdjax import compiler, evaluation, models, sharding
from bdjax.defenses import neural_cleanse, pruning, strip
from bdjax.models import Weights
from benchmarks.timing import interleaved, report
from tests.defenses import reference_neural_cleanse as reference

_MODEL = flags.DEFINE_enum("model", "cnn", list(models.MODELS), "The network.")
_WIDTH = flags.DEFINE_integer("width", 64, "Its width.")
_SIZE = flags.DEFINE_integer("size", 28, "Side of the images, in pixels.")
_CLAIMS = flags.DEFINE_list(
  "claims", ["Neural Cleanse", "pruning curve", "STRIP"], "Which of them."
)
_REPEATS = flags.DEFINE_integer("repeats", 5, "Timings of each.")
KEY = jax.random.key(0)
CLASSES = 10


def _images(count, shape):
  bits = jax.random.bits(jax.random.fold_in(KEY, count), (count, *shape))
  return (bits % 256).astype(jnp.uint8)


def time_neural_cleanse(model, weights, shape, repeats):
  """All classes in one program, against the tests' class after class."""
  settings = neural_cleanse.Settings(steps=2, updates=8, asr_threshold=1.0)
  mesh = sharding.make_mesh()
  images = _images(256, shape)
  call = neural_cleanse.make_call(
    model,
    settings,
    mesh,
    class_batch=neural_cleanse.searches_at_once(shape, settings.batch_size),
    stretch=settings.steps,
  )
  state = neural_cleanse.init(KEY, CLASSES, shape)
  targets = jnp.arange(CLASSES)
  gradient = reference.make_gradient(model, weights)
  host = np.asarray(images)
  rows = np.arange(8 * 32).reshape(8, 32)

  def one_at_a_time():
    for target in range(CLASSES):
      start = [v[target] for v in state.variables]
      reference.reverse(
        gradient, host, target, settings, start, lambda step: rows
      )

  return interleaved(
    {
      "all classes in one program": lambda: call(
        weights, KEY, images, targets, state
      ),
      "one class after the other": one_at_a_time,
    },
    repeats,
  )


def time_pruning_curve(model, weights, shape, repeats):
  """All prefixes from one pass, against an evaluation, and one for each."""
  layer = pruning.check_layer(model, shape)
  channels = models.layers(model, shape)[layer]
  order = jnp.arange(channels)
  masks = pruning.prefix_masks(order)
  mesh = sharding.make_mesh()
  images = _images(512, shape)
  together = evaluation.over_images(
    pruning.predict_prefixes(model, layer), 256, mesh
  )
  predict = evaluation.make_predict(pruning.masked(model), 256, mesh)
  pruned = [pruning.prune(weights, {layer: mask}) for mask in masks]
  functions = {
    f"all {channels + 1} networks from one pass": lambda: together(
      (weights, order), KEY, images
    ),
    "one of them": lambda: predict(*pruned[0], images),
  }
  if channels <= 64:  # else it takes too long, and is so many times one
    functions["one evaluation each"] = lambda: [
      predict(*w, images) for w in pruned
    ]
  return interleaved(functions, repeats)


def time_strip(model, weights, shape, repeats):
  """Inputs in chunks, against one input, and one overlay, at a time."""
  settings = strip.Settings()
  mesh = sharding.make_mesh()
  images, pool = _images(40, shape), _images(200, shape)
  floats = images.astype(jnp.float32) / 255.0
  function = strip.entropies(model, settings)
  batch = strip.inputs_at_once(settings.overlays, shape, mesh.size)
  together = evaluation.over_images(function, batch, mesh)
  each = compiler.jit(function)
  one = compiler.jit(
    lambda weights, image, overlay: strip.entropy(
      model.apply(*weights, strip.superimpose(image, overlay)[None], False)[0]
    )
  )
  overlays = pool[: settings.overlays].astype(jnp.float32) / 255.0
  split = list(overlays)  # so that slicing is not what is timed
  return interleaved(
    {
      "40 inputs in chunks": lambda: together((weights, pool), KEY, images),
      "one input at a time": lambda: [
        each((weights, pool), KEY, x[None]) for x in floats
      ],
      "one overlay at a time": lambda: [
        one(weights, x, overlay) for x in floats for overlay in split
      ],
    },
    repeats,
  )


def main(argv):
  """Times the three and prints them."""
  del argv
  channels = 1 if _MODEL.value == "cnn" else 3
  shape = (_SIZE.value, _SIZE.value, channels)
  model = models.get(
    _MODEL.value, image_shape=shape, num_classes=CLASSES, width=_WIDTH.value
  )
  weights = Weights(*jax.jit(model.init)(KEY))
  for claim, timed in (
    ("Neural Cleanse", time_neural_cleanse),
    ("pruning curve", time_pruning_curve),
    ("STRIP", time_strip),
  ):
    if claim not in _CLAIMS.value:
      continue
    found = timed(model, weights, shape, _REPEATS.value)
    report(f"{claim}, {_MODEL.value} {_WIDTH.value}", found)


if __name__ == "__main__":
  app.run(main)
