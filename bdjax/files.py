"""Files: written whole or not at all, locked, and errors in one line."""

import contextlib
import errno
import json
import logging
import os
import pathlib
from collections.abc import Iterator
from typing import Any

import filelock
import numpy as np

from bdjax.errors import UserError

logger = logging.getLogger(__name__)

_POLL_SECONDS = 0.1
_DISK_ERRORS = frozenset(
  getattr(errno, name)
  for name in (
    "ENOSPC EDQUOT EFBIG EROFS EACCES EPERM EIO ENOENT ENOTDIR EEXIST EISDIR "
    "ENAMETOOLONG"
  ).split()
  if hasattr(errno, name)  # Windows lacks EDQUOT
)


class Locked(UserError):
  """Another process holds a lock."""


@contextlib.contextmanager
def atomic(path: str | os.PathLike) -> Iterator[pathlib.Path]:
  """Write a file so that readers see the old one or the new one, whole.

  Args:
    path: the file; its directory must exist.

  Yields:
    The path of a temporary file beside it, for the block to write and close.
    It has another suffix than `path`: name the format where a library would
    guess it. It replaces `path` when the block ends and is removed when the
    block raises.

  Raises:
    OSError: the disk is full or read-only.
  """
  path = pathlib.Path(path)
  temporary = path.with_name(f".{path.name}.{os.getpid()}")
  try:
    yield temporary
    with open(temporary, "rb+") as file:
      os.fsync(file.fileno())  # else a crash may leave an empty file
    temporary.replace(path)
  finally:
    with contextlib.suppress(OSError):
      temporary.unlink()


def write_text(path: str | os.PathLike, text: str) -> None:
  """Write text as UTF-8, atomically."""
  with atomic(path) as temporary:
    temporary.write_text(text, encoding="utf-8")


def write_json(path: str | os.PathLike, value: Any) -> None:
  """Write a value as JSON, atomically.

  Raises:
    ValueError: the value has NaN or infinity, which JSON does not know.
  """
  write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def read_json(
  path: str | os.PathLike, hint: str = "delete it and run again"
) -> Any | None:
  """Read JSON.

  Args:
    path: the file.
    hint: the end of the error: what to do about a damaged file.

  Returns:
    The value; None where there is no such file.

  Raises:
    UserError: the file is not JSON, or cannot be read.
  """
  try:
    return json.loads(pathlib.Path(path).read_text(encoding="utf-8"))
  except FileNotFoundError:
    return None
  except (ValueError, RecursionError) as error:
    raise UserError(
      f"{path} is damaged ({first_line(error)}): {hint}"
    ) from error
  except OSError as error:
    raise UserError(f"{path} cannot be read ({error.strerror})") from error


def write_npz(path: str | os.PathLike, /, **arrays: Any) -> None:
  """Write arrays as a compressed `.npz` file, atomically."""
  with atomic(path) as temporary, open(temporary, "wb") as file:
    np.savez_compressed(file, **arrays)


def disk_reason(error: BaseException) -> str | None:
  """Return what the disk refused, None where the disk is not to blame.

  Args:
    error: of any type: tensorstore and array_record raise ValueError and
      RuntimeError with the system's text.

  Returns:
    The system's text, such as "No space left on device".
  """
  if isinstance(error, OSError) and error.errno is not None:
    known = error.errno in _DISK_ERRORS
    return os.strerror(error.errno) if known else None
  texts = map(os.strerror, sorted(_DISK_ERRORS))
  return next((text for text in texts if text in str(error)), None)


@contextlib.contextmanager
def disk_errors(
  directory: str | os.PathLike,
  hint: str = "another directory",
  *,
  writing: str = "",
) -> Iterator[None]:
  """Turn what a full, read-only or forbidden disk raises into one line.

  Other errors pass unchanged.

  Args:
    directory: where the block writes.
    hint: what to choose instead, for the end of the error.
    writing: what is written there, such as "a checkpoint".

  Raises:
    UserError: the disk refused.
  """
  try:
    yield
  except UserError:
    raise
  except (OSError, ValueError, RuntimeError) as error:
    reason = disk_reason(error)
    if reason is None:
      raise
    content = f"{writing} " if writing else ""
    raise UserError(
      f"cannot write {content}to {directory} ({reason}): free the disk, or "
      f"choose {hint}"
    ) from error


def first_line(error: BaseException, length: int = 200) -> str:
  """Return the first line of an error's message, its type where it has none.

  Args:
    error: any exception.
    length: the most characters to return.
  """
  lines = str(error).strip().splitlines() or [type(error).__name__]
  return printable(lines[0], length)


def printable(text: str, length: int = 80) -> str:
  """Make text out of a file fit for one line of an error.

  Args:
    text: from any source.
    length: the most characters to return; longer text ends in "...".

  Returns:
    The text with "?" for each character that cannot be printed.
  """
  line = "".join(c if c.isprintable() else "?" for c in text[: length + 1])
  return line if len(line) <= length else line[: length - 3] + "..."


@contextlib.contextmanager
def lock(path: str | os.PathLike, *, wait: bool = True) -> Iterator[bool]:
  """Hold an exclusive lock among processes on a file made for that.

  The system releases it when its holder dies, however that dies. The file is
  removed on release; one that a killed process left does no harm.

  Args:
    path: the file; its directory must exist.
    wait: wait for another process that holds the lock.

  Yields:
    True where the lock is held; False on a file system without locks.

  Raises:
    Locked: another process holds it, and `wait` is False.
    OSError: the file cannot be made.
  """
  path = pathlib.Path(path)
  while True:
    descriptor = os.open(path, os.O_CREAT | os.O_RDWR, 0o664)
    try:
      held = _acquire(descriptor, path, wait)
      if _is_same_file(path, descriptor):
        break
    except BaseException:
      os.close(descriptor)
      raise
    os.close(descriptor)  # the last holder removed it while this one waited
  try:
    yield held
  finally:
    with contextlib.suppress(OSError):
      path.unlink()
    os.close(descriptor)


def _acquire(descriptor: int, path: pathlib.Path, wait: bool) -> bool:
  """Locks a descriptor; returns False on a file system without locks."""
  try:
    if filelock.lock_descriptor(descriptor, blocking=False):
      return True
  except OSError:
    return False
  if not wait:
    raise Locked(f"another process holds {path}: wait until it ends")
  logger.info("waiting for another process (it holds %s)", path)
  return filelock.lock_descriptor(descriptor, poll_interval=_POLL_SECONDS)


def _is_same_file(path: pathlib.Path, descriptor: int) -> bool:
  try:
    return os.path.samestat(os.stat(path), os.fstat(descriptor))
  except FileNotFoundError:
    return False
