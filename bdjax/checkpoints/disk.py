"""What a full or read-only disk looks like to those who write to it."""

import errno
import os
import pathlib
import shutil

_FAILURES = tuple(
  os.strerror(getattr(errno, name))
  for name in (
    "ENOSPC EDQUOT EFBIG EROFS EACCES EPERM EIO ENOENT ENOTDIR EEXIST".split()
  )
)


def failure(error: Exception) -> str | None:
  """Says in a few words what the disk refused; None where it is not to blame.

  Args:
    error: of any type: tensorstore raises a ValueError with the system's text.
  """
  text = next((text for text in _FAILURES if text in str(error)), None)
  return text and f"{text[0].lower()}{text[1:]}"


def require_space(directory: pathlib.Path, nbytes: int) -> None:
  """Fails before orbax does, whose threads complain on the terminal.

  Args:
    directory: where a step is to be written.
    nbytes: of its arrays. A megabyte is for orbax's own files: 14 of a few
      hundred bytes.

  Raises:
    OSError: the disk has less than that.
  """
  if shutil.disk_usage(directory).free < nbytes + 2**20:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
