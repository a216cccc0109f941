"""The facts of a network that `models.get` and the importers ask for."""

from typing import NamedTuple

from bdjax.models.classifier import Classifier


class ModelSpec(NamedTuple):
  """A network of `models.MODELS`.

  Attributes:
    module: its class.
    options: the options of `models.get` that it accepts, among `width`, `stem`
      and `batch_norm`.
    smallest_side: pixels of the smallest image's side.
    kernel: dotted name in `params` of its first trained convolution's kernel.
    width_per_filter: its width divided by the filters of that kernel.
    logits: dotted name in `params` of its last layer's kernel, [units,K].
    has: dotted names in `params` that tell it from all other networks,
      together with `lacks`; without any, no file is taken for this network
      unless the caller says so.
    lacks: dotted names that `params` do not have.
  """

  module: type[Classifier]
  options: tuple[str, ...] = ("width",)
  smallest_side: int = 8
  kernel: str = ""
  width_per_filter: int = 1
  logits: str = "logits.kernel"
  has: tuple[str, ...] = ()
  lacks: tuple[str, ...] = ()
