"""A network that one was handed, and the images that one has for it."""

import os
import pathlib
from typing import Any, NamedTuple

import numpy as np

from bdjax import compiler, models
from bdjax.data import csaw, folders, npz
from bdjax.errors import UserError
from bdjax.models import Model, Weights, importers
from experiments.common.runner import Report, quiet

WHITES = (1.0, 255.0)
# Images that say on which scale a network was trained; more say it no better.
_SAMPLE = 512
# The first trained convolution of a model of ours, and its width by filters in
# it.
_FIRST = {
  "airbench": ("groups.0.conv_1.kernel", 1),
  "cnn": ("conv_1.kernel", 4),
  "minivgg": ("convs.0.kernel", 1),
  "resnet10": ("stem.kernel", 1),
  "resnet18": ("stem.kernel", 1),
}
# A layer of each that none of those below it has.
_TELLING = {
  "deepid": "conv_4.kernel",
  "airbench": _FIRST["airbench"][0],
  "resnet18": "blocks.7.conv_1.kernel",
  "resnet10": "blocks.3.conv_1.kernel",
}


class Images(NamedTuple):
  """Images from files.

  Attributes:
    names: one an image.
    images: uint8 [N,H,W,C].
    labels: int32 [N] where the files tell them; otherwise None.
  """

  names: tuple[str, ...]
  images: np.ndarray
  labels: np.ndarray | None


class Network(NamedTuple):
  """A network from a file of weights.

  Attributes:
    name: of its kind, from `models.MODELS`.
    model: its definition, for images in [0,1].
    weights: from the file.
    num_classes: K.
    white: what white was in its training, 1.0 or 255.0.
    accuracy: by white, on labelled images; None where these did not decide.
  """

  name: str
  model: Model
  weights: Weights
  num_classes: int
  white: float
  accuracy: dict[float, float] | None


def read_images(
  path: str | os.PathLike, shape: tuple[int, int, int] | None = None
) -> Images:
  """Reads a folder of PNG and JPEG images, one of them, a `.npz` or a `.h5`.

  Args:
    path: a `.npz` file holds `images` and perhaps `labels`; a `.h5` file is a
      set of CSAW-HackML-2020; what else is a file, is a picture.
    shape: (H, W, C) that they must have; None to take them as they are.

  Returns:
    The images in the order of their file names, or of the arrays; labels where
    the names or arrays tell them.

  Raises:
    UserError: there are none, or they are of another shape.
  """
  suffix = pathlib.Path(path).suffix.lower()
  if suffix not in (".npz", ".h5", ".hdf5"):
    return Images(*folders.read(path, shape))
  if suffix == ".npz":
    images, labels = npz.read_images(str(path))
  else:
    images, labels = csaw.read(path)
  if shape and images.shape[1:] != tuple(shape):
    raise UserError(
      f"{path}: its images are {list(images.shape[1:])}, not {list(shape)}: "
      "give images of that height, width and channels"
    )
  return Images(tuple(map(str, range(len(images)))), images, labels)


def open_network(
  path: str | os.PathLike,
  images: Images,
  *,
  model: str | None = None,
  white: float | None = None,
  mean: tuple[float, ...] | None = None,
  std: tuple[float, ...] | None = None,
  report: Report = quiet,
) -> Network:
  """The network whose weights are in a file.

  Classes, width and stem are those of the arrays in the file.

  Args:
    path: `.h5`, `.safetensors`, `.pt` or `.pth`, see `importers.read`.
    images: clean ones, for their shape; with labels they tell the scale.
    model: its kind; None to tell it from the names of its layers.
    white: 1.0 or 255.0; None for the one with which it classifies the images
      better, without labels 1.0.
    mean: subtracted from each channel before it, where white is 1.0.
    std: each channel is then divided by it.
    report: told in one line what the images say of the scale.

  Raises:
    UserError: the file is no such network, or does not fit the images.
  """
  found = importers.read(path)
  shapes = {k: np.shape(v) for k, v in importers.named(found.params).items()}
  if model not in (None, *models.MODELS):
    raise UserError(
      f"unknown model {model!r}; take one of {', '.join(models.MODELS)}"
    )
  kind = model or _kind(shapes, path)
  settings = _settings(kind, shapes, path)
  channels = images.images.shape[3]
  _check_scale(channels, white, mean, std)

  def make(value):
    scaled = (1 / value,) * channels
    return models.get(
      kind,
      image_shape=images.images.shape[1:],
      mean=mean,
      std=scaled if value == 255 else std,
      **settings,
    )

  weights = importers.fit(found, make(1.0), str(path))
  _check_labels(images, settings["num_classes"], path)
  accuracy = None
  if images.labels is not None and not (white or mean or std):
    white, accuracy = csaw.pixel_scale(
      lambda value: _accuracy(make(value), weights, images)
    )
    shares = ", ".join(f"{a:.2%} with {w:g}" for w, a in accuracy.items())
    report(f"white is {white:g}: clean accuracy {shares}")
  white = white or 1.0
  num_classes = settings["num_classes"]
  return Network(kind, make(white), weights, num_classes, white, accuracy)


def numbers(text: str | None, name: str) -> tuple[float, ...] | None:
  """A mean or std as flags give it.

  Args:
    text: numbers with commas; None where the flag is not given.
    name: of the flag, `--mean`.

  Returns:
    The numbers, one a channel; None where there is no text.

  Raises:
    UserError: these are no numbers.
  """
  try:
    return None if text is None else tuple(map(float, text.split(",")))
  except ValueError:
    raise UserError(f"{name}={text} are no numbers with commas") from None


def by_white(accuracy: dict[float, float] | None) -> dict[str, float] | None:
  """`Network.accuracy` as JSON has it, where keys are strings.

  Args:
    accuracy: by white; None where images did not decide.

  Returns:
    The same by "1" and "255"; None likewise.
  """
  if accuracy is None:
    return None
  return {f"{white:g}": share for white, share in accuracy.items()}


def _kind(shapes: dict[str, tuple], path) -> str:
  """The model that layers of these names belong to."""
  for kind, layer in _TELLING.items():
    if layer in shapes:
      return kind
  raise UserError(
    f"{path}: its layers do not tell which network it is: give --model"
  )


def _settings(kind: str, shapes: dict[str, tuple], path) -> dict[str, Any]:
  """Arguments for `models.get`, from the shapes of the arrays."""
  name = "output.kernel" if kind == "deepid" else "logits.kernel"
  last = shapes.get(name, ())
  if len(last) != 2 or last[1] < 2:
    raise UserError(f"{path}: these are no weights of {kind}: give --model")
  settings = {"num_classes": last[1]}
  layer, factor = _FIRST.get(kind, ("", 0))
  first = shapes.get(layer, ())
  if len(first) == 4:
    settings["width"] = factor * first[3]
    if kind.startswith("resnet") and first[0] == 7:
      settings["stem"] = "imagenet"
  return settings


def _check_scale(channels: int, white, mean, std) -> None:
  if white not in (None, *WHITES):
    raise UserError(f"white is {white:g}: take 1 or 255")
  if white == 255 and (mean or std):
    raise UserError("a mean and std are of pixels in 0..1: take them, or 255")
  for values in (mean, std):
    if values is not None and len(values) != channels:
      raise UserError(
        f"a mean or std of {len(values)} numbers for {channels} channels: give "
        "one a channel"
      )
    if values is not None and not np.isfinite(values).all():
      raise UserError("a mean or std is not finite: give numbers")
  if std is not None and min(std) <= 0:
    raise UserError(f"a std of {min(std):g}: give positive numbers")


def _check_labels(images: Images, num_classes: int, path) -> None:
  if images.labels is not None and images.labels.max() >= num_classes:
    raise UserError(
      f"{path}: the network has {num_classes} classes, and an image has the "
      f"label {images.labels.max()}: give images that belong to it"
    )


def _accuracy(model: Model, weights: Weights, images: Images) -> float:
  """On the first images."""
  sample = images.images[:_SAMPLE].astype(np.float32) / np.float32(255)
  apply = compiler.jit(
    lambda weights, x: model.apply(*weights, x, False)[0].argmax(-1)
  )
  found = np.asarray(apply(weights, sample))
  return float(np.mean(found == images.labels[:_SAMPLE]))
