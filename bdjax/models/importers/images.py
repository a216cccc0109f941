"""Images from files, for networks from files."""

import os
import pathlib
from typing import NamedTuple

import numpy as np

from bdjax.data import csaw, folders, npz
from bdjax.errors import UserError


class Images(NamedTuple):
  """Images from files.

  Attributes:
    names: one an image.
    images: uint8 [N,H,W,C].
    labels: int32 [N] where the files have them; otherwise None.
  """

  names: tuple[str, ...]
  images: np.ndarray
  labels: np.ndarray | None


def read_images(
  path: str | os.PathLike, shape: tuple[int, int, int] | None = None
) -> Images:
  """Read a folder of PNG and JPEG images, one of them, a `.npz` or a `.h5`.

  Args:
    path: a `.npz` file has `images` and perhaps `labels`; a `.h5` file is a
      set of CSAW-HackML-2020; any other file is one image.
    shape: (H, W, C) that they must have; None for any.

  Returns:
    The images in the order of their file names, or of the arrays; labels where
    the names or arrays have them.

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
      f"{path}: images must be {list(shape)} (got {list(images.shape[1:])})"
    )
  return Images(tuple(map(str, range(len(images)))), images, labels)
