"""Checkpoints of a run: saved in the background, restored from a whole step.

Orbax makes a step appear at once, by a rename, so that a killed process never
leaves half of one under its final name. What comes after, a changed bit or a
missing file, the checksums tell that `contents` puts beside the arrays.
"""

import contextlib
import math
import os
import pathlib
import shutil
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import orbax.checkpoint as ocp
from absl import logging

from bdjax.checkpoints import contents, disk, retention
from bdjax.errors import UserError

# Orbax logs each of its steps, and each failure once per thread with a
# traceback, through absl's one logger. Whatever matters is raised as well.
logging.get_absl_logger().addFilter(
  lambda record: f"{os.sep}orbax{os.sep}" not in record.pathname
)


class Checkpoint(NamedTuple):
  """What `Checkpoints.restore` gives back: one whole step."""

  step: int
  state: Any
  generator: Any
  meta: dict[str, Any]


class Checkpoints:
  """The checkpoints in one directory; a context manager that closes itself.

  Args:
    directory: where the steps lie; made when missing.
    keep_latest: how many of the newest steps stay. With two, there is one to
      go back to when the newest is damaged.
    keep_best: how many of the steps with the lowest loss stay besides.
    read_only: for those who only look (a defense, an evaluation): nothing is
      made or cleaned up, so that a run that is still training is left alone.

  Raises:
    UserError: the directory cannot be made or written.
  """

  def __init__(
    self,
    directory: str | os.PathLike[str],
    *,
    keep_latest: int = 2,
    keep_best: int = 1,
    read_only: bool = False,
  ):
    self._directory = pathlib.Path(directory).absolute()
    self._last: int | None = None  # the step last saved or restored here
    self._damaged: set[int] = set()
    self._failed = False
    self._read_only = read_only
    if not read_only:
      with self._disk():
        self._directory.mkdir(parents=True, exist_ok=True)
      self._remove_unfinished()
    with self._disk():
      self._manager = ocp.CheckpointManager(
        self._directory,
        item_names=contents.ITEMS,
        options=ocp.CheckpointManagerOptions(
          preservation_policy=retention.latest_and_best(
            keep_latest, keep_best, self._loss
          ),
          create=False,
          read_only=read_only,
          # Else a directory that cannot be made leaves threads that wait
          # for it for minutes, and keep the process alive.
          async_options=ocp.AsyncOptions(
            create_directories_asynchronously=False
          ),
          # Orbax would read its own metadata of every step, and fail on
          # the first that is damaged.
          lightweight_initialize=True,
        ),
      )
    self._losses = {
      step: self._read_loss(step) for step in self._manager.all_steps()
    }

  def __enter__(self) -> "Checkpoints":
    return self

  def __exit__(self, kind, error, traceback) -> None:
    try:
      self.close()
    except UserError:
      if error is None:  # else the error that came first is the one to see
        raise

  def save(
    self,
    step: int,
    state: Any,
    generator: Any,
    meta: dict[str, Any],
    loss: float,
  ) -> None:
    """Saves a step in the background; returns once the arrays are copied.

    Saving the step that was just saved or restored does nothing. Steps found
    damaged go, and so do those that are not older than this one: they belong
    to a run that this one replaces.

    Args:
      step: training steps done, >= 0.
      state: pytree of arrays; None and empty containers are kept as they are.
      generator: the same, for the generator's own state.
      meta: what JSON can hold.
      loss: mean training loss since the last save; the lowest is the best.

    Raises:
      UserError: the disk is full or read-only, now or in the save before.
      ValueError: these checkpoints were opened with `read_only`.
    """
    if self._read_only:
      raise ValueError(f"{self._directory} was opened read-only")
    if step == self._last:
      return
    packed = contents.pack(state, generator, meta, loss)
    with self._disk():
      self._manager.wait_until_finished()
      for old in self._manager.all_steps():
        if old >= step or old in self._damaged:
          self._manager.delete(old)
      self._damaged.clear()
      disk.require_space(self._directory, packed.nbytes)
      self._losses[step] = float(loss)
      self._manager.save(step, args=packed.items, force=True)
    self._last = step

  def latest_step(self) -> int | None:
    """Returns the newest finished step, None when there is none."""
    self.wait()
    return self._manager.latest_step()

  def best_step(self) -> int | None:
    """Returns the finished step with the lowest loss, None without any."""
    self.wait()
    steps = self._manager.all_steps()
    return min(reversed(steps), key=self._loss) if steps else None

  def restore(
    self,
    state: Any,
    generator: Any = None,
    *,
    step: int | None = None,
    report: Callable[[str], None] | None = None,
  ) -> Checkpoint | None:
    """Restores the newest step that is whole.

    Args:
      state: a tree of arrays or of `jax.ShapeDtypeStruct` that says what is
        expected and where it goes: with a sharding, there; else on the default
        device. A None skips what lies under it: a defense that wants the
        classifier alone passes `target.replace(opt_state=None)`.
      generator: the same; None, the default, skips the generator.
      step: this step and no other, for example `best_step()`.
      report: is told, in one line each, of damaged steps that were passed over.

    Returns:
      The checkpoint, or None when the directory has none.

    Raises:
      UserError: a checkpoint of another model or configuration (the line names
        the first array that differs); every step is damaged; no such `step`.
    """
    self.wait()
    steps = sorted(self._manager.all_steps(), reverse=True)
    if step is not None and step not in steps:
      raise UserError(
        f"no checkpoint of step {step} in {self._directory}: "
        f"there are {steps[::-1]}"
      )
    targets = {"state": state, "generator": generator}
    for candidate in steps if step is None else [step]:
      try:
        path = self._directory / str(candidate)
        record, values = contents.read(path, targets)
      except (UserError, MemoryError):
        raise
      except PermissionError as error:
        raise UserError(
          f"checkpoint {candidate} in {self._directory} cannot be read "
          f"({error.strerror}): run as the user who owns it"
        ) from error
      except Exception:  # damaged files end in errors of every kind
        self._damaged.add(candidate)
        self._losses[candidate] = math.inf
        if report is not None:
          report(
            f"checkpoint {candidate} in {self._directory} is damaged: "
            "it is passed over"
          )
        continue
      self._last = candidate
      trees = {
        name: contents.place(target, values[name])
        for name, target in targets.items()
      }
      return Checkpoint(candidate, **trees, meta=record["meta"])
    if steps:
      raise UserError(
        f"the checkpoints in {self._directory} are damaged: delete that "
        "directory to start over, or choose another run name"
      )
    return None

  def wait(self) -> None:
    """Waits for the save that is under way.

    Raises:
      UserError: it failed because the disk is full or read-only.
    """
    with self._disk():
      self._manager.wait_until_finished()

  def close(self) -> None:
    """Waits for the save that is under way and ends orbax's threads.

    Raises:
      UserError: the save failed and no call has said so yet.
    """
    if not self._failed:
      with self._disk():
        self._manager.close()
    if self._failed:
      with contextlib.suppress(Exception):  # the failure has been told
        self._manager.close()
      self._remove_unfinished()

  def _remove_unfinished(self) -> None:
    for half in self._directory.glob("*.orbax-checkpoint-tmp*"):
      shutil.rmtree(half, ignore_errors=True)

  def _loss(self, step: int) -> float:
    loss = self._losses.get(step, math.inf)
    return math.inf if math.isnan(loss) else loss

  def _read_loss(self, step: int) -> float:
    try:
      path = self._directory / str(step)
      return contents.read_record(path)["loss"]
    except Exception:  # a damaged step is never the best
      return math.inf

  @contextlib.contextmanager
  def _disk(self) -> Iterator[None]:
    """Turns what a full or read-only disk raises into one line."""
    try:
      yield
    except (OSError, ValueError) as error:  # tensorstore raises ValueError
      self._failed = True
      reason = disk.failure(error)
      if reason is None:
        raise
      raise UserError(
        f"no checkpoint can be written to {self._directory} "
        f"({reason}): free the disk or choose another directory for the runs"
      ) from error
