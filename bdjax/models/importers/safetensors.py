"""Named arrays in safetensors files, read with care and written whole."""

import math
import os
import pathlib

import numpy as np
import safetensors
import safetensors.numpy

from bdjax.errors import UserError
from bdjax.files import atomic, first_line, printable
from bdjax.models.importers import checks

# The library accepts headers up to 100 MB, which parsed are a gigabyte.
_MAX_HEADER = 2**22
_FLOATS = {"F16": 2, "BF16": 2, "F32": 4, "F64": 8}
_COUNTERS = ("I64", "I32")  # PyTorch counts batches in scalars


def read(
  path: str | os.PathLike, shown: str | os.PathLike | None = None
) -> dict[str, np.ndarray]:
  """Read the arrays in a safetensors file.

  Args:
    path: the file.
    shown: its name in errors, where that is not its path.

  Returns:
    Finite float32 arrays by name. Scalar integers, which no weight is, are
    left out.

  Raises:
    UserError: not such a file, damaged, of other types, or too large.
  """
  file = checks.require_file(path)
  path = shown or path
  with file.open("rb") as opened:
    header = int.from_bytes(opened.read(8), "little")
  if header > _MAX_HEADER:
    raise _unreadable(path, f"a header of {header} bytes")
  try:
    with safetensors.safe_open(file, framework="np") as opened:
      return _arrays(path, opened, file.stat().st_size)
  except UserError:
    raise
  except Exception as error:  # the library raises many types
    raise _unreadable(path, first_line(error)) from error


def _unreadable(path: str | os.PathLike, reason: str) -> UserError:
  return UserError(
    f"{path}: cannot be read as safetensors ({reason}): fetch it again"
  )


def _arrays(path: str | os.PathLike, opened, held: int):
  """Read the float32 arrays of an open file of `held` bytes."""
  slices = {name: opened.get_slice(name) for name in opened.keys()}  # noqa: SIM118
  names = [n for n, piece in slices.items() if _is_weight(path, n, piece)]
  declared = sum(_bytes(slices[name]) for name in names)
  checks.require_bytes(path, declared, held)
  return {
    name: checks.as_float32(path, name, opened.get_tensor(name))
    for name in names
  }


def _is_weight(path: str | os.PathLike, name: str, piece) -> bool:
  """Return whether a tensor is a weight; False for a counter."""
  dtype, shape = piece.get_dtype(), piece.get_shape()
  if dtype in _COUNTERS and not shape:
    return False
  if dtype not in _FLOATS:
    raise UserError(f"{path}: {printable(name)} is {dtype}: it must be floats")
  return True


def _bytes(piece) -> int:
  return math.prod(piece.get_shape()) * _FLOATS[piece.get_dtype()]


def write(path: str | os.PathLike, arrays: dict[str, np.ndarray]) -> None:
  """Write arrays as a safetensors file, whole or not at all.

  Args:
    path: the file; an existing one is replaced.
    arrays: by name.

  Raises:
    UserError: it cannot be written.
  """
  # The library writes the bytes of an array in the order of its memory.
  arrays = {k: np.ascontiguousarray(v) for k, v in arrays.items()}
  data = safetensors.numpy.save(arrays)
  try:
    with atomic(pathlib.Path(path).expanduser()) as temporary:
      temporary.write_bytes(data)
  except OSError as error:
    raise UserError(
      f"{path}: cannot be written ({error.strerror}): name a file in a "
      "directory that exists and is yours"
    ) from error
