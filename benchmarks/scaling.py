"""The growth of our defences' cost with images, overlays, classes, channels.

python -m benchmarks.scaling

Each is timed at four sizes, doubling. The exponent of a power law is fitted to
the medians, and stands beside that of the operations of the textbook
algorithm: below it where a fixed cost is spread, or where ours does less.
"""

from bdjax.defenses.neural_cleanse.schedule import SearchSettings
from benchmarks import neural_cleanse, pruning_curve, script, strip
from benchmarks.plain.networks import forward_operations
from benchmarks.timing import Comparison

FLAGS = {
  "sizes": script.Flag(4, "Sizes, each twice the one before; at least 2.", 2),
  "smallest": script.Flag(10, "Smallest number of inputs and overlays.", 2),
  "channels": script.Flag(128, "Smallest number of channels.", 32),
  "features": script.Flag(1000, "Images whose features are cached.", 4),
}


def _comparison(claim, axis, make, sizes, operations):
  """Compare `make(size)` at each size; `operations(size)` are its own."""
  names = {f"{axis} {size}": size for size in sizes}
  return Comparison(
    claim,
    {name: make(size) for name, size in names.items()},
    sizes={n: (float(s), float(operations(s))) for n, s in names.items()},
  )


def strip_with(case: script.Case, axis: str, sizes: list[int]) -> Comparison:
  """Compare STRIP at several numbers of `inputs` or of `overlays`."""
  pool = script.images(4 * max(sizes), case)
  forward = forward_operations(case, script.CLASSES)
  fixed = min(20, len(pool)) if axis == "inputs" else 16

  def make(size):
    inputs, overlays = (size, fixed) if axis == "inputs" else (fixed, size)
    return strip.ours(case, script.images(inputs, case), pool, overlays)

  return _comparison(
    f"STRIP against {axis}, {case}",
    axis,
    make,
    sizes,
    lambda size: forward * size * fixed,
  )


def neural_cleanse_with(
  case: script.Case, axis: str, sizes: list[int]
) -> Comparison:
  """Compare Neural Cleanse at several numbers of `classes` or `images`."""
  forward = forward_operations(case, script.CLASSES)

  def settings(size):
    batch = 16 * size if axis == "images" else 16
    return SearchSettings(
      steps=1, updates=2, batch_size=batch, asr_threshold=1.0
    )

  def make(size):
    s = settings(size)
    images = script.images(s.updates * s.batch_size, case)
    classes = size if axis == "classes" else 2
    return neural_cleanse.ours(case, s, images, classes)

  def operations(size):
    classes = size if axis == "classes" else 2
    return 2 * forward * 2 * settings(size).batch_size * classes

  return _comparison(
    f"Neural Cleanse against {axis}, {case}", axis, make, sizes, operations
  )


def pruning_with_channels(
  case: script.Case, sizes: list[int], images: int
) -> Comparison:
  """Compare curves from features of several numbers of channels.

  A channel is a point of the curve and a column of the features.
  """

  def make(channels):
    task = pruning_curve.PruningTask(case._replace(width=channels // 8), 1, 1)
    features = pruning_curve.cached(task, images)
    return pruning_curve.ours_cached(
      task, features, script.labels(images), images
    )

  return _comparison(
    f"pruning curve from {images} features against channels, {case.model}",
    "channels",
    make,
    sizes,
    lambda channels: 2 * images * script.CLASSES * channels * (channels + 1),
  )


def comparisons(
  options: script.Options,
  sizes: int,
  smallest: int,
  channels: int,
  features: int,
):
  """Compare sizes of the small CNN, and of ResNet-18's head."""
  case = script.case_of(options._replace(width=None), "cnn")
  resnet = script.case_of(options._replace(bf16=False), "resnet18")
  factors = [2**i for i in range(sizes)]
  counts = [smallest * factor for factor in factors]
  yield strip_with(case, "inputs", counts)
  yield strip_with(case, "overlays", counts)
  yield neural_cleanse_with(case, "classes", factors)
  yield neural_cleanse_with(case, "images", factors)
  yield pruning_with_channels(
    resnet, [channels * factor for factor in factors], features
  )


if __name__ == "__main__":
  script.main(comparisons, FLAGS)
