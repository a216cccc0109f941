"""The clean run that an attack is compared with; found, never trained."""

import dataclasses
import logging
import pathlib
from typing import Any

from bdjax.errors import UserError
from bdjax.metrics import Score
from bdjax.runs.config import RunConfig, differences, fields, identity
from bdjax.runs.directory import read_results
from bdjax.runs.resolve import resolve

logger = logging.getLogger(__name__)
# What a clean network must share with an attack's that is made from it.
_ALIKE = ("dataset", "data_sha256", "model", "width", "stem")


def clean_config(config: RunConfig) -> RunConfig:
  """Return the configuration of a clean run with the same flags."""
  kept = {f.name: getattr(config, f.name) for f in fields()}
  kept |= {"run_name": None, "seeds": 1, "clean_run": None}
  return resolve(RunConfig(None, None, config.data_sha256, **kept))


def find_clean_run(
  config: RunConfig, runs: pathlib.Path
) -> pathlib.Path | None:
  """Find the clean run that a run is compared with.

  Args:
    config: resolved, of one seed.
    runs: where finished runs are looked for, alone and in groups.

  Returns:
    Its directory; None where there is none.

  Raises:
    UserError: `clean_run` is no finished clean run of the same data.
  """
  if config.clean_run is not None:
    return _given(config)
  wanted = identity(clean_config(config))
  for pattern in ("*/results.json", "*/seed-*/results.json"):
    for path in sorted(runs.glob(pattern)):
      stored = _config_of(path.parent)
      if stored is not None and not differences(stored, wanted):
        return path.parent
  return None


def benchmark(config: RunConfig, runs: pathlib.Path) -> Score | None:
  """Return the clean accuracy of the same model trained without an attack.

  Args: as of `find_clean_run`.

  Returns:
    The score; None, and a line that names the command, where no run has it.
  """
  directory = find_clean_run(config, runs)
  if directory is None:
    logger.info(
      "no clean run to compare with: `%s` trains one", command(config, runs)
    )
    return None
  return Score(**read_results(directory)["measured"]["clean_accuracy"])


def _given(config: RunConfig) -> pathlib.Path:
  directory = pathlib.Path(config.clean_run).expanduser()
  seed = directory / f"seed-{config.seed}"
  if seed.is_dir():  # of a group, the run of the same seed
    directory = seed
  stored = _config_of(directory)
  if stored is None or stored.get("attack") is not None:
    raise UserError(
      f"clean_run must be a finished run of `clean` (got {config.clean_run})"
    )
  own = identity(config)
  for name in _ALIKE:
    if stored.get(name) != own.get(name):
      raise UserError(
        f"clean_run must have the same {name} ({directory} has "
        f"{stored.get(name)}, this run {own.get(name)})"
      )
  return directory


def _config_of(directory: pathlib.Path) -> dict[str, Any] | None:
  """Return the configuration in a run's results; None if it is not a run's."""
  try:
    results = read_results(directory)
  except (UserError, OSError):
    return None
  config = results.get("config") if isinstance(results, dict) else None
  return config if isinstance(config, dict) else None


def command(config: RunConfig, runs: pathlib.Path) -> str:
  """Return the command that trains the clean run where it is looked for."""
  default = resolve(RunConfig(dataset=config.dataset))
  flags = []
  for field in dataclasses.fields(RunConfig):
    if field.name == "dataset" or "help" not in field.metadata:
      continue
    value = getattr(config, field.name)
    if not field.metadata["free"] and value != getattr(default, field.name):
      flags.append(f"--{field.name}={value}")
  if str(runs) != default.runs_dir:
    flags.append(f"--runs_dir={runs}")
  dataset = f"--dataset={config.dataset}"
  return " ".join(["python -m experiments.clean", dataset, *flags])
