"""A defence on clean runs: what its verdict is without a backdoor."""

import dataclasses
import pathlib
from collections.abc import Callable
from typing import Any

from bdjax.defenses.base import DefenseMethod
from bdjax.defenses.neural_cleanse.anomaly import p_value
from bdjax.errors import UserError
from bdjax.runs.defense_config import ELSEWHERE, DefenseConfig
from bdjax.runs.load import TrainedRun, find_runs, stored_config

# What a clean run must share with a run whose scores it is compared with.
_ALIKE = ("dataset", "model", "width", "stem", "epochs", "augment")


def add_p_value(
  results: dict[str, Any],
  method: DefenseMethod,
  config: DefenseConfig,
  run: TrainedRun,
  defend: Callable[[DefenseConfig], dict[str, Any]],
) -> dict[str, Any]:
  """Add the p-value of a verdict, by the same defence on clean runs.

  Args:
    results: of the defence on the run examined.
    method: the defence.
    config: its run; `null_runs` are directories with commas.
    run: the run examined, which is left out where `null_runs` hold it.
    defend: runs the same defence with another configuration.

  Returns:
    The results with `p_value`, a list, which seeds are not averaged over.

  Raises:
    UserError: one is no clean run or unlike the run examined, or none is left.
  """
  null = []
  for text in config.null_runs.split(","):
    for path in find_runs(pathlib.Path(text.strip()).expanduser()):
      if path.resolve() == run.directory.resolve():
        continue
      _check_null(path, run)
      clean = dataclasses.replace(
        config,
        run=str(path),
        checkpoint=None,
        output=None,
        overwrite=False,
        null_runs=None,
        **dict.fromkeys(ELSEWHERE),
      )
      other = defend(clean)
      null.append(other["measured"]["largest_index"])
  if not null:
    raise UserError("null_runs must name another run than the one examined")
  value = p_value(results["measured"]["largest_index"], null)
  measured = results["measured"] | {"p_value": [value]}
  details = results["details"] | {"null_largest_indices": null}
  return results | {"measured": measured, "details": details}


def _check_null(path: pathlib.Path, run: TrainedRun) -> None:
  null = stored_config(path)
  if null.attack is not None:
    raise UserError(f"null_runs must be clean runs (got {path})")
  for name in _ALIKE:
    own, other = getattr(run.config, name), getattr(null, name)
    if own != other and own is not None:
      raise UserError(
        f"null_runs must have the same {name} ({path} has {other}, the run "
        f"examined {own})"
      )
