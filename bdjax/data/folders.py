"""Folders of PNG and JPEG images, and single image files."""

import io
import math
import os
import pathlib
import re
import warnings
from typing import NamedTuple

import numpy as np
from PIL import Image

from bdjax.errors import UserError

_SUFFIXES = (".png", ".jpg", ".jpeg")
_LABEL = re.compile(r"(?:^|[_-])label[_=-]?(\d{1,9})$", re.IGNORECASE)

# Bounds on memory: of a file, of an image, and of all images together.
_MOST_FILE_BYTES = 2**26
_MOST_PIXELS = 2**24
_MOST_BYTES = 2**30

_GRAY = ("1", "L", "LA")
_COLOUR = ("P", "PA", "RGB", "RGBA")


class Pictures(NamedTuple):
  """Images read from files.

  Attributes:
    names: of the files, sorted.
    images: uint8 [N,H,W,C].
    labels: int32 [N] where the names carry them, as in `0_label_43.png`;
      otherwise None.
  """

  names: tuple[str, ...]
  images: np.ndarray
  labels: np.ndarray | None


def read(
  path: str | os.PathLike, shape: tuple[int, int, int] | None = None
) -> Pictures:
  """Reads all PNG and JPEG images of a folder, or a single one.

  A folder's other files, its folders and its hidden files are left out.

  Args:
    path: the folder, or the file.
    shape: (H, W, C) that every image must have, C being 1 or 3; None to take
      that of the first. Nothing is resized.

  Returns:
    The images, sorted by name.

  Raises:
    UserError: no such path or no image in it, one of another shape or that
      cannot be read, or too many for the memory.
  """
  folder = pathlib.Path(path).expanduser()
  files = _files(folder) if os.path.isdir(folder) else [folder]
  first = read_image(files[0], shape)
  if len(files) * first.size > _MOST_BYTES:
    raise UserError(
      f"{path}: {len(files)} images of {list(first.shape)} take more than "
      f"{_MOST_BYTES >> 20} MB: give fewer"
    )
  images = np.empty((len(files), *first.shape), np.uint8)
  images[0] = first
  for index, file in enumerate(files[1:], 1):
    images[index] = read_image(file, first.shape)
  names = tuple(file.name for file in files)
  return Pictures(names, images, _labels(path, names))


def read_image(
  path: str | os.PathLike, shape: tuple[int, int, int] | None = None
) -> np.ndarray:
  """Reads one PNG or JPEG image, whatever its name ends in.

  Colours of a palette become RGB, and where three channels are wanted, gray
  becomes three equal ones. Of an animation the first picture counts. A
  camera's note on how the picture should be turned is not heeded.

  Args:
    path: the file.
    shape: (H, W, C) that it must have, C being 1 or 3; None to take its own.

  Returns:
    uint8 [H,W,C].

  Raises:
    UserError: no such file, not PNG or JPEG, broken, huge, of another shape,
      transparent, or neither RGB nor gray of 8 bits.
  """
  data = _bytes(path)
  with warnings.catch_warnings():
    # A picture's oddities are no matter; a bomb is refused.
    warnings.simplefilter("ignore")
    warnings.simplefilter("error", Image.DecompressionBombWarning)
    try:
      with Image.open(io.BytesIO(data), formats=("PNG", "JPEG")) as image:
        # Only the header has been read as yet.
        channels = _check_header(path, image, shape)
        return _decoded(path, image, channels)
    except UserError:
      raise
    # Pillow raises nearly everything, down to SyntaxError, at a broken file.
    except Exception as error:
      raise UserError(
        f"{path}: cannot be read as PNG or JPEG ({_reason(error)}): save it "
        "again"
      ) from error


def _files(folder: pathlib.Path) -> list[pathlib.Path]:
  try:
    files = sorted(
      file
      for file in folder.iterdir()
      if file.suffix.lower() in _SUFFIXES
      and not file.name.startswith(".")
      and os.path.isfile(file)
    )
  except OSError as error:
    raise UserError(f"{folder}: {error.strerror}: check the folder") from error
  if not files:
    raise UserError(
      f"{folder}: no image in it: give a folder of {', '.join(_SUFFIXES)} files"
    )
  return files


def _bytes(path: str | os.PathLike) -> bytes:
  """Returns a file's bytes: Pillow then cannot read more than these."""
  file = os.path.expanduser(path)
  if not os.path.isfile(file):
    if os.path.isdir(file):
      raise UserError(f"{path}: a folder: give one of its pictures")
    raise UserError(f"{path}: no such file or folder: check the path")
  try:
    with open(file, "rb") as opened:
      data = opened.read(_MOST_FILE_BYTES + 1)
  except OSError as error:
    raise UserError(f"{path}: {error.strerror}: check the file") from error
  if len(data) > _MOST_FILE_BYTES:
    raise UserError(
      f"{path}: larger than {_MOST_FILE_BYTES >> 20} MB: give a smaller image"
    )
  return data


def _reason(error: Exception) -> str:
  # Pillow names the buffer that it was given, by its address in memory.
  if isinstance(error, Image.UnidentifiedImageError):
    return "it is neither"
  return (str(error).splitlines() or [type(error).__name__])[0]


def _check_header(
  path: str | os.PathLike,
  image: Image.Image,
  shape: tuple[int, int, int] | None,
) -> int:
  """Returns how many channels to decode, 1 or 3."""
  width, height = image.size
  if image.mode not in _GRAY + _COLOUR:
    raise UserError(
      f"{path}: its pixels are {image.mode}: save it as RGB or gray of 8 bits"
    )
  own = 1 if image.mode in _GRAY else 3
  channels = shape[2] if shape else own
  if channels not in (1, 3):
    raise UserError(
      f"shape {list(shape)} has {channels} channels: images have 1 or 3"
    )
  if (shape and (height, width) != tuple(shape[:2])) or own > channels:
    raise UserError(
      f"{path}: it is {[height, width, own]}, not {list(shape)}: give images "
      "of that height, width and channels"
    )
  if math.prod(image.size) > _MOST_PIXELS:
    raise UserError(
      f"{path}: {height}x{width} pixels: give at most {_MOST_PIXELS}"
    )
  return channels


def _decoded(
  path: str | os.PathLike, image: Image.Image, channels: int
) -> np.ndarray:
  if image.mode.endswith("A") or "transparency" in image.info:
    image = image.convert("RGBA")
    if image.getchannel("A").getextrema()[0] < 255:
      raise UserError(
        f"{path}: parts of it are transparent: save it without transparency"
      )
  image = image.convert("L" if channels == 1 else "RGB")
  return np.array(image).reshape(*image.size[::-1], channels)


def _labels(
  path: str | os.PathLike, names: tuple[str, ...]
) -> np.ndarray | None:
  found = [_LABEL.search(pathlib.Path(name).stem) for name in names]
  if not any(found):
    return None
  if not all(found):
    raise UserError(
      f"{path}: {names[found.index(None)]} has no label in its name, though "
      "others have: name all like 0_label_43.png, or none"
    )
  return np.array([int(match[1]) for match in found], np.int32)
