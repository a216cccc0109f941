"""One preparer at a time, on one machine or over a shared folder."""

import contextlib
import fcntl
import os
import pathlib
from collections.abc import Callable, Iterator


@contextlib.contextmanager
def lock(path: pathlib.Path, report: Callable[[str], None]) -> Iterator[bool]:
  """Holds an exclusive lock on a file, made for that and removed after it.

  The kernel lets go of it when its holder dies, however that dies.

  Args:
    path: the file; its folder must be there.
    report: is told once if another process has to be waited for.

  Yields:
    Whether it is held; some file systems have no locks.

  Raises:
    OSError: the file cannot be made.
  """
  while True:
    descriptor = os.open(path, os.O_CREAT | os.O_RDWR, 0o664)
    held = _wait(descriptor, path, report)
    if _is_still(path, descriptor):
      break
    os.close(descriptor)  # the last holder removed it while this one waited
  try:
    yield held
  finally:
    with contextlib.suppress(OSError):
      path.unlink()
    os.close(descriptor)


def _wait(descriptor: int, path: pathlib.Path, report) -> bool:
  try:
    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    return True
  except BlockingIOError:
    report(f"waiting for another process (it holds {path})")
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    return True
  except OSError:
    return False


def _is_still(path: pathlib.Path, descriptor: int) -> bool:
  try:
    return os.path.samestat(os.stat(path), os.fstat(descriptor))
  except FileNotFoundError:
    return False
