"""Named arrays in safetensors files, read with care and written whole."""

import math
import os
import pathlib

import numpy as np
import safetensors
import safetensors.numpy

from bdjax.errors import UserError
from bdjax.models.importers import checks

# The library takes headers up to 100 MB, which parsed are a gigabyte.
_HEADER = 2**22
_FLOATS = {"F16": 2, "BF16": 2, "F32": 4, "F64": 8}
_COUNTERS = ("I64", "I32")  # PyTorch counts batches in scalars


def read(
  path: str | os.PathLike, shown: str | os.PathLike | None = None
) -> dict[str, np.ndarray]:
  """The arrays in a safetensors file.

  Args:
    path: the file.
    shown: what errors call it, where that is not its path.

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
  if header > _HEADER:
    raise UserError(
      f"{path}: cannot be read as safetensors (a header of {header} bytes): "
      "fetch it again"
    )
  found = {}
  with (
    checks.reading(path, "safetensors"),
    safetensors.safe_open(file, framework="np") as opened,
  ):
    slices = {name: opened.get_slice(name) for name in opened.keys()}  # noqa: SIM118
    wanted = [n for n, s in slices.items() if _is_weight(path, n, s)]
    declared = sum(_bytes(slices[name]) for name in wanted)
    checks.require_bytes(path, declared, file.stat().st_size)
    for name in wanted:
      found[name] = checks.as_float32(path, name, opened.get_tensor(name))
  return found


def _is_weight(path: str | os.PathLike, name: str, piece) -> bool:
  """Whether a tensor is a weight; False for a counter."""
  dtype, shape = piece.get_dtype(), piece.get_shape()
  if dtype in _COUNTERS and not shape:
    return False
  if dtype not in _FLOATS:
    raise UserError(
      f"{path}: {checks.printable(name)} is {dtype}: weights are floats"
    )
  return True


def _bytes(piece) -> int:
  return math.prod(piece.get_shape()) * _FLOATS[piece.get_dtype()]


def write(path: str | os.PathLike, arrays: dict[str, np.ndarray]) -> None:
  """Writes arrays as a safetensors file, whole or not at all.

  Args:
    path: the file; one that is there is replaced.
    arrays: by name.

  Raises:
    UserError: it cannot be written.
  """
  # The library writes the bytes of an array in the order that they lie in.
  arrays = {k: np.ascontiguousarray(v) for k, v in arrays.items()}
  data = safetensors.numpy.save(arrays)
  file = pathlib.Path(path).expanduser()
  part = file.with_name(f".{file.name}.{os.getpid()}")
  try:
    try:
      part.write_bytes(data)
      part.replace(file)
    finally:
      part.unlink(missing_ok=True)
  except OSError as error:
    raise UserError(
      f"{path}: cannot be written ({error.strerror}): name a file in a "
      "directory that is there and yours"
    ) from error
