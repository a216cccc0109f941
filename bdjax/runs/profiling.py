"""Traces of what host and devices do, for a viewer.

They change no outcome, and are no part of what a run is known by.
"""

import contextlib
import pathlib
import tempfile
from collections.abc import Iterator

import jax

from bdjax.files import disk_errors

# The first call of a training warms up; the next three are as all others.
FIRST, LAST = 2, 4


def check(directory: str | None) -> None:
  """Make the directory of the trace, before anything long begins.

  Raises:
    UserError: it cannot be written to.
  """
  if directory is None:
    return
  path = pathlib.Path(directory).expanduser()
  with disk_errors(path, "another directory for profile"):
    path.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=path):
      pass


def _start(directory: str) -> None:
  options = jax.profiler.ProfileOptions()
  options.python_tracer_level = 0  # every Python call: slow, and not asked for
  jax.profiler.start_trace(
    pathlib.Path(directory).expanduser(),
    create_perfetto_trace=True,
    profiler_options=options,
  )


@contextlib.contextmanager
def traced(directory: str | None) -> Iterator[None]:
  """Trace what is done within; nothing without a directory."""
  if directory is None:
    yield
    return
  _start(directory)
  try:
    yield
  finally:
    jax.profiler.stop_trace()


class TracedCalls:
  """Traces the second to the fourth call of a training, as far as it goes."""

  def __init__(self, directory: str | None):
    self._directory, self._done, self._running = directory, 0, False

  def __enter__(self) -> "TracedCalls":
    return self

  def count(self) -> bool:
    """Count a finished call; return whether a trace began or ended."""
    self._done += 1
    if self._directory is None or self._done not in (FIRST - 1, LAST):
      return False
    if self._done == LAST:
      self._stop()
    else:
      _start(self._directory)
      self._running = True
    return True

  def _stop(self) -> None:
    if self._running:
      self._running = False
      jax.profiler.stop_trace()

  def __exit__(self, *error) -> None:
    self._stop()
