"""Networks: `get(name, ...) -> Model`."""

import difflib
import functools

import jax.numpy as jnp

from bdjax.errors import UserError
from bdjax.models import airbench, cnn, deepid, resnet, vgg
from bdjax.models.base import Model, Weights, from_module
from bdjax.models.inspection import count_parameters, layers

__all__ = ["MODELS", "Model", "Weights", "count_parameters", "get", "layers"]

MODELS = {
  "airbench": airbench.SPEC,
  "cnn": cnn.SPEC,
  "deepid": deepid.SPEC,
  "minivgg": vgg.SPEC,
  "resnet10": resnet.RESNET10,
  "resnet18": resnet.RESNET18,
}
PRECISIONS = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}
_STEMS = ("cifar", "imagenet")
# Options that not all networks accept, with the value that all of them have.
_DEFAULTS = {"width": 64, "stem": "cifar", "batch_norm": False}


def get(
  name: str,
  *,
  image_shape: tuple[int, int, int],
  num_classes: int,
  mean: tuple[float, ...] | None = None,
  std: tuple[float, ...] | None = None,
  width: int = 64,
  stem: str = "cifar",
  batch_norm: bool = False,
  precision: str = "float32",
) -> Model:
  """Make a network by its name.

  Args:
    name: `airbench`, `cnn`, `deepid`, `minivgg`, `resnet10` or `resnet18`.
    image_shape: (H, W, C), H and W at least 8 (`airbench`: 9, `deepid`: 31), C
      1 or 3.
    num_classes: at least 2.
    mean: per-channel mean of the images in [0,1], for the first layer; zeros
      by default.
    std: likewise the standard deviation; ones by default.
    width: filters of the first stage, a multiple of 4; 64 is the size that
      the literature uses. `deepid` has 64 only: its layers are fixed.
    stem: `cifar` or `imagenet`; the latter of the two ResNets only.
    batch_norm: whether `cnn` normalises the outputs of its convolutions. The
      other networks have one form each, and accept False only.
    precision: dtype of the computation, `float32` or `bfloat16`; parameters
      and batch statistics are float32 in both.

  Returns:
    The model.

  Raises:
    UserError: an argument is unknown or out of range.
  """
  if name not in MODELS:
    near = difflib.get_close_matches(name, MODELS, cutoff=0.4) or list(MODELS)
    raise UserError(f"unknown model {name!r}; did you mean {', '.join(near)}?")
  options = {"width": width, "stem": stem, "batch_norm": batch_norm}
  _check_images(name, image_shape)
  _check_options(name, options, precision)
  spec, channels = MODELS[name], image_shape[2]
  make = functools.partial(
    spec.module,
    image_shape=image_shape,
    num_classes=num_classes,
    mean=mean or (0.0,) * channels,
    std=std or (1.0,) * channels,
    dtype=PRECISIONS[precision],
    **{option: options[option] for option in spec.options},
  )
  return from_module(lambda rngs: make(rngs=rngs))


def _check_images(name: str, image_shape: tuple[int, int, int]) -> None:
  height, cols, channels = image_shape
  side = MODELS[name].smallest_side
  if min(height, cols) < side or channels not in (1, 3):
    raise UserError(
      f"images must be at least {side}x{side} for {name}, with 1 or 3 channels "
      f"(got {height}x{cols}x{channels})"
    )


def _check_options(name: str, options: dict, precision: str) -> None:
  width, stem = options["width"], options["stem"]
  if width < 4 or width % 4:
    raise UserError(f"width must be a positive multiple of 4 (got {width})")
  if stem not in _STEMS:
    raise UserError(f"stem must be {' or '.join(_STEMS)} (got {stem!r})")
  if precision not in PRECISIONS:
    raise UserError(
      f"precision must be {' or '.join(PRECISIONS)} (got {precision!r})"
    )
  for option, value in options.items():
    if option not in MODELS[name].options and value != _DEFAULTS[option]:
      others = [m for m, spec in MODELS.items() if option in spec.options]
      raise UserError(
        f"{option} must be {_DEFAULTS[option]} for {name} (got {value}); only "
        f"{', '.join(others)} can have another"
      )
