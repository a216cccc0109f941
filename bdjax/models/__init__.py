"""Networks: `get(name, ...) -> Model`."""

import difflib
import functools

import jax.numpy as jnp

from bdjax.errors import UserError
from bdjax.models import airbench, deepid
from bdjax.models.base import (
  Model,
  Weights,
  count_parameters,
  from_module,
  layers,
)
from bdjax.models.cnn import CNN
from bdjax.models.resnet import ResNet10, ResNet18
from bdjax.models.vgg import MiniVGG

__all__ = ["MODELS", "Model", "Weights", "count_parameters", "get", "layers"]

MODELS = {
  "airbench": airbench.AirBench,
  "cnn": CNN,
  "deepid": deepid.DeepID,
  "minivgg": MiniVGG,
  "resnet10": ResNet10,
  "resnet18": ResNet18,
}
_SMALLEST_SIDES = {
  "airbench": airbench.SMALLEST_SIDE,
  "deepid": deepid.SMALLEST_SIDE,
}
PRECISIONS = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}


def get(
  name: str,
  *,
  image_shape: tuple[int, int, int],
  num_classes: int,
  mean: tuple[float, ...] | None = None,
  std: tuple[float, ...] | None = None,
  width: int = 64,
  stem: str = "cifar",
  precision: str = "float32",
) -> Model:
  """A network by name.

  Args:
    name: `airbench`, `cnn`, `deepid`, `minivgg`, `resnet10` or `resnet18`.
    image_shape: (H, W, C), H and W at least 8 (`airbench`: 9, `deepid`: 31), C
      1 or 3.
    num_classes: at least 2.
    mean: per-channel mean of the images in [0,1], for the first layer; zeros
      by default.
    std: likewise the standard deviation; ones by default.
    width: filters of the first stage, a multiple of 4; 64 is the size that
      the literature uses. `deepid`'s layers are fixed: leave it at 64.
    stem: `cifar` or `imagenet`, of the two ResNets only.
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
  height, cols, channels = image_shape
  side = _SMALLEST_SIDES.get(name, 8)
  if min(height, cols) < side or channels not in (1, 3):
    raise UserError(
      f"images are {height}x{cols}x{channels}; {name} takes {side}x{side} and "
      "larger, with 1 or 3 channels"
    )
  if width < 4 or width % 4:
    raise UserError(f"width is {width}; take a positive multiple of 4")
  if name == "deepid" and width != 64:
    raise UserError(
      f"width is {width}; deepid's layers are fixed: leave it at 64"
    )
  if stem not in ("cifar", "imagenet"):
    raise UserError(f"unknown stem {stem!r}; take cifar or imagenet")
  if stem == "imagenet" and not name.startswith("resnet"):
    raise UserError(f"stem=imagenet is a ResNet's; {name} has no such stem")
  if precision not in PRECISIONS:
    raise UserError(
      f"unknown precision {precision!r}; take float32 or bfloat16"
    )
  make = functools.partial(
    MODELS[name],
    image_shape=image_shape,
    num_classes=num_classes,
    mean=mean or (0.0,) * channels,
    std=std or (1.0,) * channels,
    dtype=PRECISIONS[precision],
    **({} if name == "deepid" else {"width": width}),
    **({"stem": stem} if name.startswith("resnet") else {}),
  )
  return from_module(lambda rngs: make(rngs=rngs))
