"""Checkpoints of a run: saved in the background, restored from a whole step.

A step on disk holds three orbax items: `state` and `generator`, each a flat
dict of arrays by path (`params/conv1/kernel`), and `meta`, JSON with the
caller's own dict, the loss, and the dtype, shape and CRC-32 of every array.
Orbax makes a step appear at once, by a rename, so that a killed process never
leaves half of one under its final name. The CRCs are for what comes after: of
50 bits changed in an array's file, orbax restored 49 without a word.
"""

import contextlib
import errno
import json
import math
import os
import pathlib
import shutil
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from etils import epath
from orbax.checkpoint import checkpoint_managers

from bdjax.errors import UserError

_TREES = ("state", "generator")
_DISK_ERRORS = tuple(
  os.strerror(getattr(errno, name))
  for name in (
    "ENOSPC EDQUOT EFBIG EROFS EACCES EPERM EIO ENOENT ENOTDIR EEXIST".split()
  )
)

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
    best = _LowestLoss(self._loss, keep_best)
    latest = checkpoint_managers.LatestN(keep_latest)
    with self._disk():
      self._manager = ocp.CheckpointManager(
        self._directory,
        item_names=(*_TREES, "meta"),
        options=ocp.CheckpointManagerOptions(
          preservation_policy=checkpoint_managers.AnyPreservationPolicy(
            [latest, best]
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
    arrays = {"state": _by_path(state), "generator": _by_path(generator)}
    arrays = {  # to the host now: the next training step donates them
      name: {path: np.asarray(leaf) for path, leaf in leaves.items()}
      for name, leaves in arrays.items()
    }
    described = {
      name: {path: _describe(leaf) for path, leaf in leaves.items()}
      for name, leaves in arrays.items()
    }
    record = json.loads(  # as it will be read back: with keys of strings
      json.dumps({"meta": meta, "loss": float(loss), "arrays": described})
    )
    record["checksum"] = _record_checksum(record)
    items = {  # orbax refuses an item without arrays
      name: ocp.args.PyTreeSave(leaves)
      for name, leaves in arrays.items()
      if leaves
    }
    items["meta"] = ocp.args.JsonSave(record)
    with self._disk():
      self._manager.wait_until_finished()
      for old in self._manager.all_steps():
        if old >= step or old in self._damaged:
          self._manager.delete(old)
      self._damaged.clear()
      self._require_space(
        sum(leaf.nbytes for tree in arrays.values() for leaf in tree.values())
      )
      self._losses[step] = float(loss)
      self._manager.save(step, args=ocp.args.Composite(**items), force=True)
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
        record, values = self._read(candidate, targets)
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
      trees = {name: _place(targets[name], values[name]) for name in _TREES}
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

  def _require_space(self, nbytes: int) -> None:
    # A disk that fills up under orbax's threads makes them complain on the
    # terminal. A megabyte is for its own files: 14 of a few hundred bytes.
    if shutil.disk_usage(self._directory).free < nbytes + 2**20:
      raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

  def _remove_unfinished(self) -> None:
    for half in self._directory.glob("*.orbax-checkpoint-tmp*"):
      shutil.rmtree(half, ignore_errors=True)

  def _loss(self, step: int) -> float:
    loss = self._losses.get(step, math.inf)
    return math.inf if math.isnan(loss) else loss

  def _read_record(self, step: int) -> dict[str, Any]:
    path = self._directory / str(step) / "meta" / "metadata"
    record = json.loads(path.read_text())
    if record.pop("checksum") != _record_checksum(record):
      raise ValueError("the checksum differs")
    return record

  def _read_loss(self, step: int) -> float:
    try:
      return self._read_record(step)["loss"]
    except Exception:  # a damaged step is never the best
      return math.inf

  def _read(
    self, step: int, targets: dict[str, Any]
  ) -> tuple[dict[str, Any], dict[str, dict[str, np.ndarray]]]:
    """Reads the record and the arrays asked for; raises when not whole."""
    record = self._read_record(step)
    wanted = {}
    for name in _TREES:
      wanted[name] = _by_path(targets[name])
      stored = record["arrays"][name]
      skipped = _skipped(targets[name])
      difference = _difference(
        wanted[name],
        {
          path: entry
          for path, entry in stored.items()
          if not f"{path}/".startswith(skipped)
        },
      )
      if difference:
        raise UserError(
          f"checkpoint {step} in {self._directory} is of another model or "
          f"configuration ({name}/{difference}): use the flags of that run, "
          "or choose another run name"
        )
    values = {
      name: {path: self._read_array(step, name, path) for path in leaves}
      for name, leaves in wanted.items()
    }
    for name, leaves in values.items():
      for path, value in leaves.items():
        if _describe(value) != record["arrays"][name][path]:
          raise ValueError(f"the checksum of {name}/{path} differs")
    return record, values

  def _read_array(self, step: int, name: str, path: str) -> np.ndarray:
    """Reads one array; all at once is faster by about 4 ms an array.

    But where one of many is damaged, orbax leaves the others to be read into
    an event loop that it has closed, and Python complains on the terminal.
    """
    args = ocp.args.PyTreeRestore(
      item={path: 0.0},
      restore_args={path: ocp.RestoreArgs(restore_type=np.ndarray)},
      partial_restore=True,
    )
    return ocp.PyTreeCheckpointHandler().restore(
      epath.Path(self._directory / str(step) / name), args=args
    )[path]

  @contextlib.contextmanager
  def _disk(self) -> Iterator[None]:
    """Turns what a full or read-only disk raises into one line."""
    try:
      yield
    except (OSError, ValueError) as error:  # tensorstore raises ValueError
      self._failed = True
      reason = next((text for text in _DISK_ERRORS if text in str(error)), None)
      if reason is None:
        raise
      raise UserError(
        f"no checkpoint can be written to {self._directory} "
        f"({reason[0].lower()}{reason[1:]}): free the disk or choose another "
        "directory for the runs"
      ) from error


class _LowestLoss(checkpoint_managers.PreservationPolicy):
  """Keeps the steps with the lowest loss.

  Orbax's own BestN knows the metrics of a step from before a restart only
  with a `best_fn`, and then a damaged metrics file stops the manager itself.
  """

  def __init__(self, loss: Callable[[int], float], n: int):
    self._loss = loss
    self._n = n

  def should_preserve(
    self,
    checkpoints: Sequence[checkpoint_managers.PolicyCheckpointInfo],
    *,
    context: Any,
  ) -> Sequence[bool]:
    steps = [info.step for info in checkpoints]
    best = sorted(reversed(steps), key=self._loss)[: self._n]
    return [step in best for step in steps]


def _paths(tree: Any) -> list[tuple[str, Any]]:
  leaves, _ = jax.tree_util.tree_flatten_with_path(
    tree, is_leaf=lambda leaf: leaf is None
  )
  return [
    (jax.tree_util.keystr(path, simple=True, separator="/"), leaf)
    for path, leaf in leaves
  ]


def _by_path(tree: Any) -> dict[str, Any]:
  return {path: leaf for path, leaf in _paths(tree) if leaf is not None}


def _skipped(tree: Any) -> tuple[str, ...]:
  return tuple(
    f"{path}/" if path else "" for path, leaf in _paths(tree) if leaf is None
  )


def _describe(array: np.ndarray) -> list[Any]:
  flat = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
  return [str(array.dtype), list(array.shape), zlib.crc32(flat)]


def _record_checksum(record: dict[str, Any]) -> int:
  return zlib.crc32(json.dumps(record, sort_keys=True).encode())


def _difference(
  wanted: dict[str, Any], stored: dict[str, list[Any]]
) -> str | None:
  """Returns the first array that differs and how, None when all agree."""
  for path in [*wanted, *(path for path in stored if path not in wanted)]:
    here, there = "", ""
    if path in wanted:
      here = f"{wanted[path].dtype}{list(wanted[path].shape)}"
    if path in stored:
      there = f"{stored[path][0]}{stored[path][1]}"
    if here != there:
      return f"{path}: {there or 'absent'} there, {here or 'absent'} here"
  return None


def _place(target: Any, values: dict[str, np.ndarray]) -> Any:
  """Gives the values the target's structure, and puts them where it says."""

  def put(leaf: Any, value: np.ndarray) -> jax.Array:
    committed = getattr(leaf, "committed", True)
    return jax.device_put(
      value, getattr(leaf, "sharding", None) if committed else None
    )

  leaves = [
    None if leaf is None else put(leaf, values[path])
    for path, leaf in _paths(target)
  ]
  structure = jax.tree.structure(target, is_leaf=lambda leaf: leaf is None)
  return jax.tree.unflatten(structure, leaves)
