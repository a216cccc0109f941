"""Folders of PNG and JPEG images."""

import os
import pathlib
import re
from typing import NamedTuple

import numpy as np

from bdjax.data.image_files import read_image, write_png
from bdjax.errors import UserError

__all__ = ["ImageFiles", "read", "read_image", "write_png"]

_SUFFIXES = (".png", ".jpg", ".jpeg")
_LABEL = re.compile(r"(?:^|[_-])label[_=-]?(\d{1,9})$", re.IGNORECASE)

_MAX_BYTES = 2**30  # of all images together


class ImageFiles(NamedTuple):
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
) -> ImageFiles:
  """Read all PNG and JPEG images of a folder, or a single one.

  A folder's other files, its folders and its hidden files are left out.

  Args:
    path: the folder, or the file.
    shape: (H, W, C) that every image must have, C being 1 or 3; None for that
      of the first. Nothing is resized.

  Returns:
    The images, sorted by name.

  Raises:
    UserError: no such path or no image in it, one of another shape or that
      cannot be read, or too many for the memory.
  """
  folder = pathlib.Path(path).expanduser()
  files = _files(folder) if os.path.isdir(folder) else [folder]
  first = read_image(files[0], shape)
  if len(files) * first.size > _MAX_BYTES:
    raise UserError(
      f"{path}: {len(files)} images of {list(first.shape)} must not be more "
      f"than {_MAX_BYTES >> 20} MB: use fewer"
    )
  images = np.empty((len(files), *first.shape), np.uint8)
  images[0] = first
  for index, file in enumerate(files[1:], 1):
    images[index] = read_image(file, first.shape)
  names = tuple(file.name for file in files)
  return ImageFiles(names, images, _labels(path, names))


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
      f"{folder}: no image in it: it must have {', '.join(_SUFFIXES)} files"
    )
  return files


def _labels(
  path: str | os.PathLike, names: tuple[str, ...]
) -> np.ndarray | None:
  matches = [_LABEL.search(pathlib.Path(name).stem) for name in names]
  if not any(matches):
    return None
  if not all(matches):
    raise UserError(
      f"{path}: {names[matches.index(None)]} has no label in its name, though "
      "others have: name all like 0_label_43.png, or none"
    )
  return np.array([int(match[1]) for match in matches], np.int32)
