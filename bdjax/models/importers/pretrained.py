"""Networks that others trained, opened from files of weights."""

import logging
import os
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from bdjax import batching, compiler, models
from bdjax.data import csaw
from bdjax.errors import UserError
from bdjax.models import Model, Weights, importers
from bdjax.models.importers.images import Images

logger = logging.getLogger(__name__)

PIXEL_MAXIMA = (1.0, 255.0)
# Images that decide between the ranges of pixels; more do not decide better.
_SAMPLE = 512


class PretrainedNetwork(NamedTuple):
  """A network from a file of weights.

  Attributes:
    name: its name in `models.MODELS`.
    model: its definition, for images in [0,1].
    weights: from the file.
    num_classes: K.
    pixel_max: the largest pixel in its training, 1.0 or 255.0.
    accuracy: by largest pixel, on labelled images; None where these did not
      decide.
  """

  name: str
  model: Model
  weights: Weights
  num_classes: int
  pixel_max: float
  accuracy: dict[float, float] | None


def open_network(
  path: str | os.PathLike,
  images: Images,
  *,
  model: str | None = None,
  pixel_max: float | None = None,
  mean: tuple[float, ...] | None = None,
  std: tuple[float, ...] | None = None,
) -> PretrainedNetwork:
  """Open the network whose weights are in a file.

  Classes, width, stem and batch normalisation are those of the arrays in the
  file.

  Args:
    path: `.h5`, `.safetensors`, `.pt` or `.pth`, see `importers.read`.
    images: clean ones, for their shape; with labels they decide the range of
      the pixels.
    model: its name in `models.MODELS`; None to identify it by its layers.
    pixel_max: the largest pixel in its training, 1.0 or 255.0; None for the
      one with which it classifies the images better, without labels 1.0.
    mean: subtracted from each channel before the network, where the largest
      pixel is 1.0.
    std: each channel is then divided by it.

  Returns:
    The network.

  Raises:
    UserError: the file has no such network, or does not fit the images.
  """
  weights = importers.read(path)
  names = importers.flatten_names(weights.params)
  shapes = {name: np.shape(array) for name, array in names.items()}
  if model not in (None, *models.MODELS):
    raise UserError(
      f"model must be one of {', '.join(models.MODELS)} (got {model!r})"
    )
  name = model or _identify(shapes, path)
  settings = _settings(name, shapes, path)
  channels = images.images.shape[3]
  _check_normalisation(channels, pixel_max, mean, std)

  def make(high: float) -> Model:
    return models.get(
      name,
      image_shape=images.images.shape[1:],
      mean=mean,
      std=(1 / high,) * channels if high == 255 else std,
      **settings,
    )

  weights = importers.fit(weights, make(1.0), str(path))
  _check_labels(images, settings["num_classes"], path)
  accuracy = None
  if images.labels is not None and not (pixel_max or mean or std):
    pixel_max, accuracy = _choose_pixel_max(make, weights, images)
  pixel_max = pixel_max or 1.0
  return PretrainedNetwork(
    name, make(pixel_max), weights, settings["num_classes"], pixel_max, accuracy
  )


def by_pixel_max(
  accuracy: dict[float, float] | None,
) -> dict[str, float] | None:
  """Convert `PretrainedNetwork.accuracy` for JSON, where keys are strings.

  Args:
    accuracy: by largest pixel; None where images did not decide.

  Returns:
    The same by "1" and "255"; None likewise.
  """
  if accuracy is None:
    return None
  return {f"{high:g}": share for high, share in accuracy.items()}


def _identify(shapes: dict[str, tuple], path: str | os.PathLike) -> str:
  """Return the name of the model that has these layers."""
  for name, spec in models.MODELS.items():
    if spec.has and shapes.keys() >= set(spec.has):
      if not shapes.keys() & set(spec.lacks):
        return name
  raise UserError(
    f"{path}: its layers do not tell which network it is: the model must be "
    "given"
  )


def _settings(
  name: str, shapes: dict[str, tuple], path: str | os.PathLike
) -> dict[str, Any]:
  """Return the arguments for `models.get` that the arrays' shapes tell."""
  spec = models.MODELS[name]
  logits = shapes.get(spec.logits, ())
  if len(logits) != 2 or logits[1] < 2:
    raise UserError(
      f"{path}: these are not weights of {name}: another model must be given"
    )
  settings = {"num_classes": logits[1]}
  kernel = shapes.get(spec.kernel, ())
  if len(kernel) == 4:
    settings["width"] = spec.width_per_filter * kernel[3]
    if "stem" in spec.options and kernel[0] == 7:
      settings["stem"] = "imagenet"
  if "batch_norm" in spec.options:
    settings["batch_norm"] = "norm_1.scale" in shapes
  return settings


def _check_normalisation(channels: int, pixel_max, mean, std) -> None:
  if pixel_max not in (None, *PIXEL_MAXIMA):
    raise UserError(f"pixel_max must be 1 or 255 (got {pixel_max:g})")
  if pixel_max == 255 and (mean or std):
    raise UserError(
      "mean and std must be left out where pixel_max is 255: they are of "
      "pixels in 0..1"
    )
  for name, values in (("mean", mean), ("std", std)):
    if values is not None and len(values) != channels:
      raise UserError(
        f"{name} must have {channels} numbers, one a channel (got "
        f"{len(values)})"
      )
    if values is not None and not np.isfinite(values).all():
      raise UserError(f"{name} must be finite")
  if std is not None and min(std) <= 0:
    raise UserError(f"std must be positive (got {min(std):g})")


def _check_labels(
  images: Images, num_classes: int, path: str | os.PathLike
) -> None:
  if images.labels is not None and images.labels.max() >= num_classes:
    raise UserError(
      f"{path}: labels must be below {num_classes}, the network's classes (got "
      f"{images.labels.max()}): use images that belong to the network"
    )


def _choose_pixel_max(
  make: Callable[[float], Model], weights: Weights, images: Images
) -> tuple[float, dict[float, float]]:
  """Return the better largest pixel, and the accuracy with either."""
  pixel_max, accuracy = csaw.pixel_max(
    lambda high: _accuracy(make(high), weights, images)
  )
  shares = ", ".join(f"{a:.2%} with {m:g}" for m, a in accuracy.items())
  logger.info("largest pixel %g: clean accuracy %s", pixel_max, shares)
  return pixel_max, accuracy


def _accuracy(model: Model, weights: Weights, images: Images) -> float:
  """Compute the accuracy on the first images."""
  sample = batching.to_float(images.images[:_SAMPLE])
  predict = compiler.jit(batching.predictions(model))
  predictions = np.asarray(predict(weights, None, sample))
  return float(np.mean(predictions == images.labels[:_SAMPLE]))
