"""The idx format of MNIST and Fashion-MNIST (LeCun, Cortes, Burges 1998)."""

import gzip
import math
import pathlib
import struct
import zlib

import numpy as np

from bdjax.data.base import Arrays
from bdjax.errors import UserError

# In the order of the fields of Arrays.
FILES = (
  "train-images-idx3-ubyte",
  "train-labels-idx1-ubyte",
  "t10k-images-idx3-ubyte",
  "t10k-labels-idx1-ubyte",
)


def parse(data: bytes) -> np.ndarray:
  """Return the uint8 array that the bytes of an idx file hold.

  Raises:
    ValueError: not idx, not uint8, or cut short.
  """
  if len(data) < 4 or data[:3] != b"\x00\x00\x08":
    raise ValueError("not an idx file of unsigned bytes")
  dimensions = data[3]
  start = 4 + 4 * dimensions
  if len(data) < start:
    raise ValueError("cut short")
  shape = struct.unpack(f">{dimensions}I", data[4:start])
  if len(data) - start != math.prod(shape):
    raise ValueError(f"{len(data) - start} bytes, not {math.prod(shape)}")
  return np.frombuffer(data, np.uint8, offset=start).reshape(shape)


def from_members(members: dict[str, bytes]) -> Arrays:
  """Return the dataset of the four idx files.

  Args:
    members: the bytes of each file of `FILES`, by name.

  Raises:
    KeyError, ValueError: a file is missing, or is not what it should be.
  """
  arrays = Arrays(*(parse(members[name]) for name in FILES))
  if [array.ndim for array in arrays] != [3, 1, 3, 1]:
    raise ValueError("images and labels have the wrong number of dimensions")
  return Arrays(
    arrays.x_train[..., None],
    arrays.y_train.astype(np.int32),
    arrays.x_test[..., None],
    arrays.y_test.astype(np.int32),
  )


def is_directory_of(directory: pathlib.Path) -> bool:
  """Tell whether any of the four files, plain or gzipped, is there."""
  return any(_find(directory, name) for name in FILES)


def read_directory(directory: pathlib.Path) -> Arrays:
  """Read the four idx files, plain or gzipped, of a directory.

  Raises:
    UserError: a file is missing or broken.
  """
  members = {}
  for name in FILES:
    path = _find(directory, name)
    if path is None:
      raise UserError(
        f"{directory}: no {name} or {name}.gz: all four idx files are needed "
        f"({', '.join(FILES)})"
      )
    members[name] = _read(path)
  try:
    return from_members(members)
  except ValueError as error:
    raise UserError(f"{directory}: {error}: fetch the files again") from error


def _find(directory: pathlib.Path, name: str) -> pathlib.Path | None:
  for path in (directory / name, directory / f"{name}.gz"):
    if path.is_file():
      return path
  return None


def _read(path: pathlib.Path) -> bytes:
  try:
    data = path.read_bytes()
    data = gzip.decompress(data) if path.suffix == ".gz" else data
    parse(data)
  except (OSError, EOFError, zlib.error, ValueError) as error:
    raise UserError(f"{path}: {error}: fetch the file again") from error
  return data
