"""The clean run that an attack is compared with: its name, where it lies."""

import dataclasses
import pathlib
from typing import Any

from bdjax.errors import UserError
from experiments.common.config import (
  Config,
  differences,
  fields_of,
  identity,
)
from experiments.common.defaults import resolve
from experiments.common.rundir import read_json


def clean_config(config: Config, runs: pathlib.Path) -> Config:
  """The benchmark's configuration, under a name that is its own or free."""
  names = {f.name for f in fields_of("clean")}
  names -= {"run_name", "overwrite", "profile", "dry_run"}
  kept = {name: getattr(config, name) for name in names}
  clean = Config("clean", config.data_sha256, **kept)
  clean = resolve(dataclasses.replace(clean, runs_dir=str(runs)))
  name, number = clean.run_name, 2
  while not _free_for(clean, _stored(runs / name / "config.json")):
    name, number = f"{clean.run_name}-{number}", number + 1
  return dataclasses.replace(clean, run_name=name)


def _free_for(clean: Config, stored: Any) -> bool:
  if stored is None:
    return True
  return isinstance(stored, dict) and not differences(stored, identity(clean))


def finished(clean: Config, runs: pathlib.Path) -> dict[str, Any] | None:
  """The results of such a run, alone or in a group; None without one."""
  for pattern in ("*/results.json", "*/*/results.json"):
    for path in sorted(runs.glob(pattern)):
      found = _stored(path)
      config = found.get("config") if isinstance(found, dict) else None
      if isinstance(config, dict):
        if not differences(config, identity(clean)):
          return found
  return None


def _stored(path: pathlib.Path) -> Any | None:
  """JSON that may be anybody's: None where it cannot be read."""
  try:
    return read_json(path)
  except (UserError, OSError):
    return {} if path.name == "config.json" else None
