"""The directory of a run: what it holds, and who may write to it.

config.json      what the outcome depends on (`runs.config.identity`)
results.json     scores and provenance; there once the run has ended
metrics.jsonl    loss, accuracy and ASR on training batches, one line a call
checkpoints/     orbax; training/ of a run that another one was made from
figures/         PNG
triggers.npz     of Neural Cleanse and a scan
defenses/NAME/   a directory of the same kind for each defence
"""

import contextlib
import json
import logging
import math
import pathlib
import shutil
from collections.abc import Callable, Iterator
from typing import Any

from bdjax import files
from bdjax.errors import UserError
from bdjax.runs.config import check_format, differences

logger = logging.getLogger(__name__)

CONFIG = "config.json"
RESULTS = "results.json"
METRICS = "metrics.jsonl"
TRIGGERS = "triggers.npz"
CHECKPOINTS = "checkpoints"
FIGURES = "figures"
DEFENSES = "defenses"
TRAINING = "training"
_FOLDERS = (DEFENSES, TRAINING, CHECKPOINTS, FIGURES)
_FILES = (RESULTS, METRICS, TRIGGERS)


def read_results(directory: pathlib.Path) -> dict[str, Any] | None:
  """Return `results.json`, None where the run has not ended.

  Raises:
    UserError: the file is damaged.
  """
  return _read(directory / RESULTS)


def read_config(directory: pathlib.Path) -> dict[str, Any] | None:
  """Return `config.json`, None where there is none.

  Raises:
    UserError: the file is damaged, or the run's format is an older one.
  """
  stored = _read(directory / CONFIG)
  if stored is None:
    return None
  if not isinstance(stored, dict):
    raise UserError(f"{directory / CONFIG} must be the configuration of a run")
  try:
    check_format(stored)
  except UserError as error:
    raise UserError(f"{directory}: {error}") from None
  return stored


def _read(path: pathlib.Path) -> Any | None:
  try:
    return files.read_json(path)
  except UserError:
    raise UserError(
      f"{path} is damaged: use overwrite to start over, or another run_name"
    ) from None


def load_or_compute(
  directory: pathlib.Path, compute: Callable[[], dict[str, Any]]
) -> dict[str, Any]:
  """Return `results.json`, computing and writing it where it is missing.

  Args:
    directory: held by `open_directory`.
    compute: returns the results, JSON-ready.

  Raises:
    UserError: the file is damaged.
  """
  results = read_results(directory)
  if results is not None:
    logger.info("%s is finished (overwrite starts over)", directory)
    return results
  results = compute()
  write_results(directory, results)
  return results


def write_results(directory: pathlib.Path, results: dict[str, Any]) -> None:
  """Write `results.json`, whole or not at all; null for what is not finite."""
  files.write_json(directory / RESULTS, _finite(results))


def _finite(value: Any) -> Any:
  if isinstance(value, dict):
    return {key: _finite(item) for key, item in value.items()}
  if isinstance(value, list | tuple):
    return [_finite(item) for item in value]
  if isinstance(value, float) and not math.isfinite(value):
    return None
  return value


def figure_path(directory: pathlib.Path, name: str) -> pathlib.Path:
  """Return the path of a figure, making its folder."""
  folder = directory / FIGURES
  folder.mkdir(exist_ok=True)
  return folder / f"{name}.png"


@contextlib.contextmanager
def open_directory(
  directory: pathlib.Path,
  identity: dict[str, Any],
  *,
  overwrite: bool = False,
  hint: str = "run_name",
) -> Iterator[pathlib.Path]:
  """Make or re-open a run's directory and hold it for this process.

  Args:
    directory: of the run.
    identity: what the run's outcome depends on, JSON-ready.
    overwrite: clears what an earlier run left there.
    hint: the setting that puts the run into another directory.

  Raises:
    UserError: another process has it, it belongs to another configuration, or
      the disk is full or read-only.
  """
  where = f"another {'runs_dir' if hint == 'run_name' else hint}"
  with contextlib.ExitStack() as stack:
    stack.enter_context(files.disk_errors(directory, where))
    directory.mkdir(parents=True, exist_ok=True)
    try:
      stack.enter_context(files.lock(directory / ".lock", wait=False))
    except files.Locked:
      raise UserError(
        f"{directory} must not be used by two processes: wait for the other "
        f"one, or use another {hint}"
      ) from None
    if overwrite:
      _clear(directory)
    _claim(directory, identity, hint)
    yield directory


def _claim(directory, identity, hint) -> None:
  """Write the configuration, or check that it is the one that stands there."""
  path = directory / CONFIG
  stored = read_config(directory)
  if stored is None:
    files.write_json(path, identity)
    return
  changes = differences(stored, identity)
  if changes:
    raise UserError(
      f"{directory} holds a run of another configuration "
      f"({', '.join(changes)}): use another {hint}, or overwrite to start over"
    )


def _clear(directory: pathlib.Path) -> None:
  """Remove what a run leaves behind, and the defences against it.

  config.json goes last: while there are checkpoints, it says whose they are.
  """
  for name in _FOLDERS:
    if (directory / name).exists():
      shutil.rmtree(directory / name)
  for name in (*_FILES, CONFIG):
    (directory / name).unlink(missing_ok=True)


class MetricsLog:
  """`metrics.jsonl`: one record a call, in order of steps."""

  def __init__(self, directory: pathlib.Path, step: int):
    """Open the log without the records after `step`, which will come again."""
    path = directory / METRICS
    self.records = [r for r in _records(path) if r["step"] <= step]
    files.write_text(path, "".join(json.dumps(r) + "\n" for r in self.records))
    self._file = open(path, "a")

  def append(self, record: dict[str, Any]) -> None:
    """Add a record, at once on disk."""
    self.records.append(record)
    self._file.write(json.dumps(record) + "\n")
    self._file.flush()

  def close(self) -> None:
    """Close the file."""
    self._file.close()


def _records(path: pathlib.Path) -> list[dict[str, Any]]:
  if not path.exists():
    return []
  records = []
  for line in path.read_text(errors="replace").splitlines():
    try:
      records.append(json.loads(line))
    except ValueError:  # the line that a killed process was writing
      break
  return records
