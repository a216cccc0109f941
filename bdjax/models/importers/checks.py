"""What every importer asks of a file before it believes it."""

import contextlib
import os
import pathlib
from collections.abc import Iterator
from typing import Any

import jax.numpy as jnp
import numpy as np

from bdjax.errors import UserError

# Bytes of weights that are read from one file. ResNet-18 has 45 MB; what is
# beyond this is a mistake, or made to exhaust memory.
LIMIT = 2**30


def require_file(path: str | os.PathLike) -> pathlib.Path:
  """The path of a file that is there and can be opened.

  Raises:
    UserError: it is not, or cannot.
  """
  try:
    file = pathlib.Path(path).expanduser()
    if not file.is_file():
      what = "not a file" if file.exists() else "no such file"
      raise UserError(f"{path}: {what}: check the path")
    file.open("rb").close()
  except (OSError, ValueError, RuntimeError) as error:
    if isinstance(error, UserError):
      raise
    raise UserError(f"{printable(str(path))}: {first_line(error)}") from error
  return file


def require_bytes(path: str | os.PathLike, declared: int, held: int) -> None:
  """Checks what a file says that it holds, before memory is asked for it.

  Args:
    path: for the error.
    declared: bytes of all arrays that would be read.
    held: size of the file in bytes. None of the formats compresses, so that
      a file which declares more is broken or hostile.

  Raises:
    UserError: it declares more than it holds, or than is ever read.
  """
  if declared > LIMIT:
    raise UserError(
      f"{path}: declares {declared / 2**30:.3g} GiB of weights: at most "
      f"{LIMIT / 2**30:.3g} are read: give the weights of one network"
    )
  if declared > held:
    raise UserError(
      f"{path}: declares {declared} bytes of weights in a file of {held}: it "
      "is cut short or hostile: fetch it again"
    )


@contextlib.contextmanager
def reading(path: str | os.PathLike, kind: str) -> Iterator[None]:
  """Turns whatever a reader of files raises into one line.

  Raises:
    UserError: something was raised.
  """
  try:
    yield
  except UserError:
    raise
  except Exception as error:  # C and Rust readers raise what they like
    raise UserError(
      f"{path}: cannot be read as {kind} ({first_line(error)}): fetch it again"
    ) from error


def first_line(error: Exception) -> str:
  """The first line of an error's message, not longer than a name."""
  return printable((str(error).splitlines() or [type(error).__name__])[0])


def printable(name: str, length: int = 80) -> str:
  """A name out of a file, fit for a line: short, and nothing but print."""
  text = "".join(c if c.isprintable() else "?" for c in name[: length + 1])
  return text if len(text) <= length else text[: length - 3] + "..."


def as_float32(path: str | os.PathLike, name: str, array: Any) -> np.ndarray:
  """An array of floats as finite float32.

  Raises:
    UserError: it is not of floats, or has NaN or infinity.
  """
  array = np.asarray(array)
  # jnp's, because numpy does not take bfloat16 for a float.
  if not jnp.issubdtype(array.dtype, jnp.floating):
    raise UserError(
      f"{path}: {printable(name)} is {array.dtype}: weights are floats"
    )
  with np.errstate(over="ignore"):
    array = array.astype(np.float32)
  if not np.isfinite(array).all():
    raise UserError(
      f"{path}: {printable(name)} has NaN or infinity: the file is damaged, or "
      "its training failed"
    )
  return array
