"""Members in step: their training calls, gathered into one program."""

import functools
import threading
from collections.abc import Callable
from typing import Any


class Together:
  """Stands in for the training call of several members, each in a thread.

  A call waits until all that are present have come with theirs; then they run
  as one program, and each takes its own part away. So a member trains, saves
  and stops as it does alone.
  """

  def __init__(self, call: Callable, members: int):
    """Makes a place for each member.

    Args:
      call: from `bdjax.population.make_call`; compiled for each number of
        members that come, so once more where one leaves early.
      members: how many are present at first.
    """
    self._call = call
    self._condition = threading.Condition()
    self._present = set(range(members))
    self._waiting: dict[int, tuple] = {}
    self._done: dict[int, Any] = {}

  def seat(self, number: int) -> Callable:
    """The training call of one member, as of `training.make_call`."""
    return functools.partial(self._take_part, number)

  def leave(self, number: int) -> None:
    """Ends a member's part: the others no longer wait for it."""
    with self._condition:
      self._present.discard(number)
      self._run_if_complete()

  def _take_part(self, number, *args):
    with self._condition:
      self._waiting[number] = args
      self._run_if_complete()
      self._condition.wait_for(lambda: number in self._done)
      found = self._done.pop(number)
    if isinstance(found, Exception):
      raise found
    return found

  def _run_if_complete(self):
    if not self._waiting or self._waiting.keys() != self._present:
      return
    numbers = sorted(self._waiting)
    try:
      found = self._call(tuple(self._waiting[i] for i in numbers))
    except Exception as error:  # every member's, to be said by the first
      found = [error] * len(numbers)
    self._waiting.clear()
    self._done |= dict(zip(numbers, found, strict=True))
    self._condition.notify_all()
