"""Signals that stop a run where it can be resumed."""

import contextlib
import signal
from collections.abc import Iterator


class Stopped(BaseException):
  """The run was asked to stop; what it had trained is saved.

  No `Exception`, so that no handler of errors swallows it.
  """

  def __init__(self, signum: int, message: str = "stopped"):
    super().__init__(message)
    self.signum = signum


@contextlib.contextmanager
def collect_signals() -> Iterator[list[int]]:
  """Collect SIGTERM and Ctrl-C for the block to act on; a second one raises.

  Yields:
    The signals received so far.

  Raises:
    Stopped: at a second signal.
  """
  received: list[int] = []

  def handler(signum, frame):
    if received:
      raise Stopped(signum, "stopped at once; the last checkpoint is kept")
    received.append(signum)

  with _handling(handler):
    yield received


@contextlib.contextmanager
def raise_on_signals() -> Iterator[None]:
  """Raise `Stopped` in the block at SIGTERM and Ctrl-C."""

  def handler(signum, frame):
    raise Stopped(signum)

  with _handling(handler):
    yield


@contextlib.contextmanager
def _handling(handler):
  # Only the main thread may set handlers; elsewhere the caller's stay.
  try:
    before = {
      number: signal.signal(number, handler)
      for number in (signal.SIGINT, signal.SIGTERM)
    }
  except ValueError:
    before = {}
  try:
    yield
  finally:
    for number, old in before.items():
      signal.signal(number, old)
