"""Checks that every importer makes of a file before it trusts it."""

import os
import pathlib
from typing import Any

import jax.numpy as jnp
import numpy as np

from bdjax.errors import UserError
from bdjax.files import first_line, printable

# Bytes of weights that are read from one file. ResNet-18 has 45 MB; a larger
# file is a mistake, or made to exhaust memory.
MAX_BYTES = 2**30


def require_file(path: str | os.PathLike) -> pathlib.Path:
  """Return the path of a file that can be opened.

  Raises:
    UserError: there is no such file, or it cannot be opened.
  """
  try:
    file = pathlib.Path(path).expanduser()
    if not file.is_file():
      reason = "not a file" if file.exists() else "no such file"
      raise UserError(f"{path}: {reason}: check the path")
    file.open("rb").close()
  except (OSError, ValueError, RuntimeError) as error:
    if isinstance(error, UserError):
      raise
    raise UserError(f"{printable(str(path))}: {first_line(error)}") from error
  return file


def require_bytes(path: str | os.PathLike, declared: int, held: int) -> None:
  """Check the size that a file declares, before memory is allocated.

  Args:
    path: for the error.
    declared: bytes of all arrays that would be read.
    held: size of the file in bytes. None of the formats compresses, so that
      a file which declares more is broken or hostile.

  Raises:
    UserError: it declares more than it holds, or more than `MAX_BYTES`.
  """
  if declared > MAX_BYTES:
    raise UserError(
      f"{path}: declares {declared / 2**30:.3g} GiB of weights: it must be at "
      f"most {MAX_BYTES / 2**30:.3g}, the weights of one network"
    )
  if declared > held:
    raise UserError(
      f"{path}: declares {declared} bytes of weights in a file of {held}: it "
      "is cut short or hostile: fetch it again"
    )


def as_float32(path: str | os.PathLike, name: str, array: Any) -> np.ndarray:
  """Convert an array of floats to finite float32.

  Raises:
    UserError: it is not of floats, or has NaN or infinity.
  """
  array = np.asarray(array)
  # jnp's, because numpy does not count bfloat16 among the floats.
  if not jnp.issubdtype(array.dtype, jnp.floating):
    raise UserError(
      f"{path}: {printable(name)} is {array.dtype}: it must be of floats"
    )
  with np.errstate(over="ignore"):
    array = array.astype(np.float32)
  if not np.isfinite(array).all():
    raise UserError(
      f"{path}: {printable(name)} has NaN or infinity: the file is damaged, or "
      "its training failed"
    )
  return array
