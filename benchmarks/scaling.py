"""How our defences' cost grows: with images, overlays, classes and channels.

python -m benchmarks.scaling

Each is timed at four sizes, doubling. The exponent of a power law is fitted to
the medians, and stands beside that of the operations of the textbook
algorithm: below it where a fixed cost is spread, or where ours does less.
"""

from bdjax.defenses import neural_cleanse as nc
from benchmarks import neural_cleanse, pruning_curve, script, strip
from benchmarks.plain.networks import forward_operations
from benchmarks.timing import Comparison

_DOUBLINGS = (1, 2, 4, 8)


def _comparison(claim, axis, make, sizes, operations):
  """`make(size)` at each size; `operations(size)` are its."""
  names = {f"{axis} {size}": size for size in sizes}
  return Comparison(
    claim,
    {name: make(size) for name, size in names.items()},
    sizes={n: (float(s), float(operations(s))) for n, s in names.items()},
  )


def strip_with(case: script.Case, axis: str, smallest: int) -> Comparison:
  """STRIP against its `inputs` or its `overlays`."""
  pool = script.images(32 * smallest, case)
  forward = forward_operations(case, script.CLASSES)

  def make(size):
    inputs = size if axis == "inputs" else 16
    overlays = size if axis == "overlays" else 20
    return strip.ours(case, script.images(inputs, case), pool, overlays)

  fixed = 20 if axis == "inputs" else 16
  return _comparison(
    f"STRIP against {axis}, {case}",
    axis,
    make,
    [smallest * d for d in _DOUBLINGS],
    lambda size: forward * size * fixed,
  )


def neural_cleanse_with(case: script.Case, axis: str) -> Comparison:
  """Neural Cleanse against its `classes` or its `images`."""
  forward = forward_operations(case, script.CLASSES)

  def settings(size):
    batch = 16 * size if axis == "images" else 16
    return nc.Settings(steps=1, updates=2, batch_size=batch, asr_threshold=1.0)

  def make(size):
    s = settings(size)
    images = script.images(s.updates * s.batch_size, case)
    classes = size if axis == "classes" else 2
    return neural_cleanse.ours(case, s, images, classes)

  def operations(size):
    classes = size if axis == "classes" else 2
    return 2 * forward * 2 * settings(size).batch_size * classes

  return _comparison(
    f"Neural Cleanse against {axis}, {case}", axis, make, _DOUBLINGS, operations
  )


def pruning_with_channels(
  case: script.Case, smallest: int, images: int
) -> Comparison:
  """The curve from features against channels: a point and a column each."""

  def make(channels):
    subject = pruning_curve.Subject(case._replace(width=channels // 8), 1, 1)
    features = pruning_curve.cached(subject, images)
    return pruning_curve.ours_cached(
      subject, features, script.labels(images), images
    )

  return _comparison(
    f"pruning curve from {images} features against channels, {case.model}",
    "channels",
    make,
    [smallest * d for d in _DOUBLINGS],
    lambda channels: 2 * images * script.CLASSES * channels * (channels + 1),
  )


def comparisons(setting: script.Setting):
  """With the small CNN, and ResNet-18's head."""
  case = script.CASES["cnn"]._replace(bf16=setting.bf16)
  yield strip_with(case, "inputs", 10)
  yield strip_with(case, "overlays", 10)
  yield neural_cleanse_with(case, "classes")
  yield neural_cleanse_with(case, "images")
  yield pruning_with_channels(script.CASES["resnet18"], 128, 1000)


if __name__ == "__main__":
  script.main(comparisons)
