"""The directory of a run: what it holds, and who may write to it."""

import contextlib
import fcntl
import json
import os
import pathlib
import shutil
from collections.abc import Callable, Iterator
from typing import Any

from bdjax.errors import UserError
from experiments.common.config import differences


def write_json(path: pathlib.Path, value: Any) -> None:
  """Writes JSON so that a reader sees the old file or the new, whole."""
  _replace(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def _replace(path: pathlib.Path, text: str) -> None:
  partial = path.with_name(f".{path.name}.{os.getpid()}")
  try:
    partial.write_text(text)
    os.replace(partial, path)
  finally:
    partial.unlink(missing_ok=True)


def read_json(path: pathlib.Path) -> Any | None:
  """Reads JSON; None where there is no such file.

  Raises:
    UserError: the file is not JSON.
  """
  try:
    return json.loads(path.read_text())
  except FileNotFoundError:
    return None
  except ValueError:
    raise UserError(
      f"{path} is damaged: start over with --overwrite, or take another "
      "--run_name"
    ) from None


def once(
  directory: pathlib.Path,
  report: Callable[[str], None],
  make: Callable[[], dict[str, Any]],
) -> dict[str, Any]:
  """What stands in `results.json`; where nothing does, it is made and written.

  Args:
    directory: held by `open_run`.
    report: told in one line, where it was there.
    make: gives it, JSON-ready.

  Raises:
    UserError: the file is not JSON.
  """
  path = directory / "results.json"
  found = read_json(path)
  if found is not None:
    report(f"{directory} is finished (--overwrite starts over)")
    return found
  found = make()
  write_json(path, found)
  return found


@contextlib.contextmanager
def disk_errors(
  directory: pathlib.Path, elsewhere: str = "--runs_dir"
) -> Iterator[None]:
  """Turns what a full or read-only disk raises into one line."""
  try:
    yield
  except OSError as error:
    raise UserError(
      f"cannot write to {directory} ({error.strerror}): free the disk, or take "
      f"another {elsewhere}"
    ) from error


@contextlib.contextmanager
def open_run(
  directory: pathlib.Path,
  identity: dict[str, Any],
  *,
  overwrite: bool = False,
  wait: Callable[[str], None] | None = None,
  elsewhere: str = "--run_name",
) -> Iterator[pathlib.Path]:
  """Makes or re-opens a run's directory and holds it for this process.

  Args:
    directory: of the run.
    identity: what the run's outcome depends on, JSON-ready.
    overwrite: clears what an earlier run left there.
    wait: told in one line, where another process has the run; then it is
      waited for. Without it that is an error.
    elsewhere: the flag that takes a run to another directory.

  Raises:
    UserError: another process has it, it belongs to another configuration, or
      the disk is full or read-only.
  """
  place = "--runs_dir" if elsewhere == "--run_name" else elsewhere
  with disk_errors(directory, place):
    directory.mkdir(parents=True, exist_ok=True)
    handle = open(directory / ".lock", "w")
  with handle, disk_errors(directory, place):
    _lock(handle, directory, wait, elsewhere)
    if overwrite:
      _clear(directory)
    _claim(directory, identity, elsewhere)
    yield directory


def _lock(handle, directory, wait, elsewhere):
  try:
    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
  except BlockingIOError:
    if wait is None:
      raise UserError(
        f"another process is at work in {directory}: wait for it, or take "
        f"another {elsewhere}"
      ) from None
    wait(f"waiting for another process to end {directory}")
    fcntl.flock(handle, fcntl.LOCK_EX)


def _claim(
  directory: pathlib.Path, wanted: dict[str, Any], elsewhere: str
) -> None:
  path = directory / "config.json"
  stored = read_json(path)
  if stored is None:
    write_json(path, wanted)
    return
  if not isinstance(stored, dict):
    raise UserError(
      f"{path} is no configuration of a run: take another {elsewhere}, or "
      "--overwrite to start over"
    )
  changes = differences(stored, wanted)
  if changes:
    raise UserError(
      f"{directory} holds a run of another configuration "
      f"({', '.join(changes)}): take another {elsewhere}, or --overwrite to "
      "start over"
    )


def _clear(directory: pathlib.Path) -> None:
  """Removes what a run leaves behind, and the defences that looked at it.

  config.json goes last: while there are checkpoints, it says whose they are.
  """
  for name in ("defenses", "training", "checkpoints", "figures"):
    if (directory / name).exists():
      shutil.rmtree(directory / name)
  names = ("results.json", "metrics.jsonl", "triggers.npz", "config.json")
  for name in names:
    (directory / name).unlink(missing_ok=True)


class MetricsLog:
  """`metrics.jsonl`: one record a call, in order of steps."""

  def __init__(self, path: pathlib.Path, step: int):
    """Opens the log; records after `step`, which will come again, go."""
    self.records = [r for r in _records(path) if r["step"] <= step]
    text = "".join(json.dumps(r) + "\n" for r in self.records)
    _replace(path, text)
    self._file = open(path, "a")

  def append(self, record: dict[str, Any]) -> None:
    """Adds a record, at once on disk."""
    self.records.append(record)
    self._file.write(json.dumps(record) + "\n")
    self._file.flush()

  def close(self) -> None:
    """Closes the file."""
    self._file.close()


def _records(path: pathlib.Path) -> list[dict[str, Any]]:
  if not path.exists():
    return []
  out = []
  for line in path.read_text().splitlines():
    try:
      out.append(json.loads(line))
    except ValueError:  # the line that a killed process was writing
      break
  return out
