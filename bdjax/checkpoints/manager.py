"""Checkpoints of a run: saved in the background, restored from a whole step.

Orbax makes a step appear at once, by a rename, so that a killed process never
leaves half of one under its final name. Damage that comes later, a changed bit
or a missing file, is detected by the checksums that `contents` stores.
"""

import contextlib
import logging
import math
import os
import pathlib
import shutil
from collections.abc import Iterator
from typing import Any, NamedTuple

from bdjax.checkpoints import contents, orbax_manager, retention
from bdjax.errors import UserError
from bdjax.files import disk_errors

logger = logging.getLogger(__name__)


class Checkpoint(NamedTuple):
  """One whole step, as `Checkpoints.restore` returns it."""

  step: int
  state: Any
  generator: Any
  meta: dict[str, Any]


class Checkpoints:
  """The checkpoints in one directory; a context manager that closes itself.

  Args:
    directory: of the steps; made when missing.
    keep_latest: how many of the newest steps stay. With two, there is one to
      go back to when the newest is damaged.
    keep_best: how many of the steps with the lowest loss stay besides.
    read_only: make and clean up nothing, as a defense or an evaluation should
      that looks at a run which is still training.

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
    self._last_step: int | None = None  # saved or restored here
    self._damaged: set[int] = set()
    self._failed = False
    self._read_only = read_only
    if not read_only:
      with self._disk():
        self._directory.mkdir(parents=True, exist_ok=True)
      self._remove_unfinished()
    keep = retention.latest_and_best(keep_latest, keep_best, self._loss)
    with self._disk():
      self._manager = orbax_manager.open_manager(
        self._directory, keep, read_only=read_only
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
      if error is None:  # else the error that came first matters
        raise

  def save(
    self,
    step: int,
    state: Any,
    generator: Any,
    meta: dict[str, Any],
    loss: float,
  ) -> None:
    """Save a step in the background; return once the arrays are copied.

    Nothing is done for the step that was just saved or restored. Damaged steps
    are deleted, and so are those that are not older than this one: they belong
    to a run that this one replaces.

    Args:
      step: training steps done, >= 0.
      state: pytree of arrays; None and empty containers are kept as they are.
      generator: the same, for the generator's own state.
      meta: values that JSON can hold.
      loss: mean training loss since the last save; the lowest is the best.

    Raises:
      UserError: the disk is full or read-only, now or in the save before.
      ValueError: these checkpoints were opened with `read_only`.
    """
    if self._read_only:
      raise ValueError(f"{self._directory} was opened read-only")
    if step == self._last_step:
      return
    packed = contents.pack(state, generator, meta, loss)
    with self._disk():
      self._manager.wait_until_finished()
      for old in self._manager.all_steps():
        if old >= step or old in self._damaged:
          self._manager.delete(old)
      self._damaged.clear()
      orbax_manager.require_space(self._directory, packed.nbytes)
      self._losses[step] = float(loss)
      self._manager.save(step, args=packed.items, force=True)
    self._last_step = step

  def latest_step(self) -> int | None:
    """Return the newest finished step, None when there is none."""
    self.wait()
    return self._manager.latest_step()

  def best_step(self) -> int | None:
    """Return the finished step with the lowest loss, None without any."""
    self.wait()
    steps = self._manager.all_steps()
    return min(reversed(steps), key=self._loss) if steps else None

  def restore(
    self, state: Any, generator: Any = None, *, step: int | None = None
  ) -> Checkpoint | None:
    """Restore the newest step that is whole; log those that are damaged.

    Args:
      state: a tree of arrays or of `jax.ShapeDtypeStruct` with the dtypes and
        shapes to be restored, placed by their sharding or else on the default
        device. What lies under a None is skipped: for the classifier alone,
        pass `target.replace(opt_state=None)`.
      generator: the same; None skips the generator.
      step: this step and no other, for example `best_step()`.

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
        f"step must be one of {steps[::-1]}, the checkpoints in "
        f"{self._directory} (got {step})"
      )
    targets = {"state": state, "generator": generator}
    for candidate in steps if step is None else [step]:
      content = self._read(candidate, targets)
      if content is None:
        continue
      record, values = content
      self._last_step = candidate
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

  def _read(
    self, step: int, targets: dict[str, Any]
  ) -> tuple[dict[str, Any], dict[str, contents.Arrays]] | None:
    """Read a step; return None where it is damaged."""
    try:
      return contents.read(self._directory / str(step), targets)
    except (UserError, MemoryError):
      raise
    except PermissionError as error:
      raise UserError(
        f"checkpoint {step} in {self._directory} cannot be read "
        f"({error.strerror}): run as the user who owns it"
      ) from error
    except Exception:  # damaged files end in errors of every kind
      self._damaged.add(step)
      self._losses[step] = math.inf
      logger.warning(
        "checkpoint %d in %s is damaged: it is skipped", step, self._directory
      )
      return None

  def wait(self) -> None:
    """Wait for the save that is under way.

    Raises:
      UserError: it failed because the disk is full or read-only.
    """
    with self._disk():
      self._manager.wait_until_finished()

  def close(self) -> None:
    """Wait for the save that is under way and end orbax's threads.

    Raises:
      UserError: the save failed and no call has said so yet.
    """
    if not self._failed:
      with self._disk():
        self._manager.close()
    if self._failed:
      with contextlib.suppress(Exception):  # the failure has been raised
        self._manager.close()
      self._remove_unfinished()

  def _remove_unfinished(self) -> None:
    for unfinished in self._directory.glob("*.orbax-checkpoint-tmp*"):
      shutil.rmtree(unfinished, ignore_errors=True)

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
    """Turn errors of a full or read-only disk into one line."""
    hint = "another directory for the runs"
    with disk_errors(self._directory, hint, writing="a checkpoint"):
      try:
        yield
      except (OSError, ValueError):  # tensorstore raises ValueError
        self._failed = True
        raise
