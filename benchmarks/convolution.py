"""Our convolution and its two gradients, one by one, against `lax`'s.

python -m benchmarks.convolution
python -m benchmarks.convolution --batch=32

Outside of loops, where `lax`'s own gradients are at their best: inside a scan
they are some fifty times slower (`benchmarks.training_step`). The shapes are
those of the small CNN, ResNet-18, airbench and DeepID; on an accelerator both
are `lax`'s. Operations: those of the direct convolution. A call alone gets its
memory anew from the system, which costs the transformed kernels of 512 channels
as much as they save; in a training step it is there.
"""

import functools
from collections.abc import Iterator
from typing import NamedTuple

import jax
from jax import lax

from bdjax import compiler
from bdjax.models import conv
from benchmarks import script
from benchmarks.timing import Comparison

FLAGS = {"batch": script.Flag(128, "Images.", 2)}


class Shape(NamedTuple):
  """A convolution: side of the images, of the window, channels, filters."""

  side: int
  window: int
  channels: int
  filters: int
  stride: int = 1


_SHAPES = (
  Shape(28, 3, 1, 16),
  Shape(32, 2, 3, 24),
  Shape(32, 3, 3, 64),
  Shape(48, 4, 3, 20),
  Shape(31, 3, 24, 64),
  Shape(32, 3, 64, 64),
  Shape(15, 3, 64, 256),
  Shape(16, 3, 128, 128),
  Shape(8, 3, 256, 256),
  Shape(4, 3, 512, 512),
  Shape(32, 3, 64, 128, stride=2),
  Shape(32, 1, 64, 128, stride=2),
  Shape(16, 3, 128, 256, stride=2),
)
_TINY_SHAPES = (Shape(8, 3, 4, 4), Shape(8, 3, 4, 8, stride=2))
_PAD = {1: 0, 2: 0, 3: 1, 4: 0}  # on each side, by window
_LAYOUT = ("NHWC", "HWIO", "NHWC")


def _parts(convolve, x, kernel, g):
  """Compile the value and the gradients, each by itself."""

  def pull(x, kernel, g):
    return jax.vjp(convolve, x, kernel)[1](g)

  functions = {
    "value": lambda x, kernel, g: convolve(x, kernel),
    "gradient by the input": lambda x, kernel, g: pull(x, kernel, g)[0],
    "gradient by the kernel": lambda x, kernel, g: pull(x, kernel, g)[1],
  }
  return {
    name: functools.partial(compiler.jit(function), x, kernel, g)
    for name, function in functions.items()
  }


def compare(shape: Shape, batch: int) -> Iterator[Comparison]:
  """Compare the three parts of one convolution of a batch of images."""
  side, window, channels, filters, stride = shape
  keys = jax.random.split(script.KEY, 3)
  x = jax.random.normal(keys[0], (batch, side, side, channels))
  kernel = jax.random.normal(keys[1], (window, window, channels, filters))
  settings = {
    "window_strides": (stride, stride),
    "padding": ((_PAD[window],) * 2,) * 2,
    "dimension_numbers": _LAYOUT,
  }
  ours = functools.partial(conv.conv, **settings)
  theirs = functools.partial(lax.conv_general_dilated, **settings)
  g = jax.random.normal(keys[2], jax.eval_shape(ours, x, kernel).shape)
  our_parts, lax_parts = (
    _parts(convolve, x, kernel, g) for convolve in (ours, theirs)
  )
  for part in our_parts:
    yield Comparison(
      f"{part}, {batch} images of {side}x{side}x{channels}, {filters} filters "
      f"of {window}x{window}" + (f", stride {stride}" if stride > 1 else ""),
      {"ours": our_parts[part], "lax": lax_parts[part]},
      operations=2.0 * g.size * window**2 * channels,
      traffic=4.0 * (x.size + kernel.size + g.size),
    )


def comparisons(options: script.Options, batch: int) -> Iterator[Comparison]:
  """Compare all parts of all shapes."""
  for shape in _TINY_SHAPES if options.tiny else _SHAPES:
    yield from compare(shape, batch)


if __name__ == "__main__":
  script.main(comparisons, FLAGS)
