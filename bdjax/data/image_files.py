"""Single PNG and JPEG files: read with bounds on memory, and written whole."""

import contextlib
import io
import math
import os
import pathlib
import warnings
from collections.abc import Iterator

import numpy as np
from PIL import Image

from bdjax.errors import UserError
from bdjax.files import atomic, first_line

# Bounds on memory: of a file and of an image.
MAX_FILE_BYTES = 2**26
MAX_PIXELS = 2**24

_GRAY = ("1", "L", "LA")
_COLOUR = ("P", "PA", "RGB", "RGBA")


def read_image(
  path: str | os.PathLike, shape: tuple[int, int, int] | None = None
) -> np.ndarray:
  """Read one PNG or JPEG image, whatever the suffix of its name.

  Colours of a palette become RGB, and where the shape has three channels, gray
  becomes three equal ones. Of an animation the first image is read. A camera's
  note on how the image should be turned is ignored.

  Args:
    path: the file.
    shape: (H, W, C) that it must have, C being 1 or 3; None for its own.

  Returns:
    uint8 [H,W,C].

  Raises:
    UserError: no such file, not PNG or JPEG, broken, huge, of another shape,
      transparent, or neither RGB nor gray of 8 bits.
  """
  with _opened(path) as image:  # only the header has been read
    channels = _check_shape(path, image, shape)
    if _has_alpha(image):
      image = image.convert("RGBA")
      if image.getchannel("A").getextrema()[0] < 255:
        raise UserError(
          f"{path}: parts of it are transparent: save it without transparency"
        )
    return _pixels(image.convert("L" if channels == 1 else "RGB"))


def read_with_alpha(
  path: str | os.PathLike, channels: int
) -> tuple[np.ndarray, np.ndarray]:
  """Read one PNG or JPEG image and its transparency.

  Args:
    path: the file.
    channels: 1 to convert colours to gray (ITU-R 601), 3 to convert gray to
      RGB.

  Returns:
    Pixels uint8 [H,W,channels], and alpha uint8 [H,W,1], which is 255 where
    the file has none.

  Raises:
    UserError: `channels` is neither 1 nor 3, or as for `read_image`.
  """
  if channels not in (1, 3):
    raise UserError(f"channels must be 1 or 3 (got {channels})")
  with _opened(path) as image:
    alpha = np.full((*image.size[::-1], 1), 255, np.uint8)
    if _has_alpha(image):
      image = image.convert("RGBA")
      alpha = _pixels(image.getchannel("A"))
    # "RGBA" to "L" and to "RGB" leave alpha out of account.
    return _pixels(image.convert("L" if channels == 1 else "RGB")), alpha


def write_png(path: str | os.PathLike, image: np.ndarray) -> None:
  """Write an image as a PNG file, atomically.

  Args:
    path: the file; its directory must exist.
    image: uint8 [H,W,C], C being 1 or 3.

  Raises:
    ValueError: it is anything else.
    OSError: the disk is full or read-only.
  """
  image = np.asarray(image)
  is_image = image.ndim == 3 and image.shape[-1] in (1, 3)
  if image.dtype != np.uint8 or not is_image:
    raise ValueError(
      "image must be uint8 [H,W,1] or [H,W,3] (got "
      f"{image.dtype}{list(image.shape)})"
    )
  pixels = image[..., 0] if image.shape[-1] == 1 else image
  with atomic(pathlib.Path(path)) as temporary:
    Image.fromarray(pixels).save(temporary, "PNG")


@contextlib.contextmanager
def _opened(path: str | os.PathLike) -> Iterator[Image.Image]:
  """Open an image of bounded size and known mode; nothing is decoded yet."""
  data = _bytes(path)
  with warnings.catch_warnings():
    # An image's oddities do not matter; a bomb is refused.
    warnings.simplefilter("ignore")
    warnings.simplefilter("error", Image.DecompressionBombWarning)
    try:
      with Image.open(io.BytesIO(data), formats=("PNG", "JPEG")) as image:
        _check_header(path, image)
        yield image
    except UserError:
      raise
    # Pillow raises nearly everything, down to SyntaxError, at a broken file.
    except Exception as error:
      raise UserError(
        f"{path}: cannot be read as PNG or JPEG ({_reason(error)}): save it "
        "again"
      ) from error


def _bytes(path: str | os.PathLike) -> bytes:
  """Return a file's bytes: Pillow then cannot read more than these."""
  file = os.path.expanduser(path)
  if not os.path.isfile(file):
    if os.path.isdir(file):
      raise UserError(
        f"{path} must be an image, not a folder: use one of its images"
      )
    raise UserError(f"{path}: no such file or folder: check the path")
  try:
    with open(file, "rb") as opened:
      data = opened.read(MAX_FILE_BYTES + 1)
  except OSError as error:
    raise UserError(f"{path}: {error.strerror}: check the file") from error
  if len(data) > MAX_FILE_BYTES:
    raise UserError(
      f"{path}: larger than {MAX_FILE_BYTES >> 20} MB: use a smaller image"
    )
  return data


def _reason(error: Exception) -> str:
  # Pillow names the buffer that it was given, by its address in memory.
  if isinstance(error, Image.UnidentifiedImageError):
    return "it is neither"
  return first_line(error)


def _check_header(path: str | os.PathLike, image: Image.Image) -> None:
  width, height = image.size
  if image.mode not in _GRAY + _COLOUR:
    raise UserError(
      f"{path}: its pixels are {image.mode}: save it as RGB or gray of 8 bits"
    )
  if math.prod(image.size) > MAX_PIXELS:
    raise UserError(
      f"{path}: it must have at most {MAX_PIXELS} pixels (got {height}x{width})"
    )


def _check_shape(
  path: str | os.PathLike,
  image: Image.Image,
  shape: tuple[int, int, int] | None,
) -> int:
  """Return how many channels to decode, 1 or 3."""
  width, height = image.size
  own = 1 if image.mode in _GRAY else 3
  channels = shape[2] if shape else own
  if channels not in (1, 3):
    raise UserError(
      f"shape must have 1 or 3 channels (got {list(shape)}, which has "
      f"{channels})"
    )
  if (shape and (height, width) != tuple(shape[:2])) or own > channels:
    raise UserError(
      f"{path}: it must have the height, width and channels {list(shape)} "
      f"(got {[height, width, own]})"
    )
  return channels


def _has_alpha(image: Image.Image) -> bool:
  return image.mode.endswith("A") or "transparency" in image.info


def _pixels(image: Image.Image) -> np.ndarray:
  """Return uint8 [H,W,C] that is the caller's own."""
  return np.array(image).reshape(*image.size[::-1], -1)
