"""Flags that every defence has; each adds its own fields."""

import dataclasses
import json
import math
from typing import Any

from bdjax.errors import UserError
from bdjax.models import MODELS
from experiments.common.config import flag


@dataclasses.dataclass(frozen=True)
class Config:
  """One field a flag."""

  run: str | None = flag(
    None,
    "The run to defend, runs/NAME; of a group (runs/NAME-seeds), all members.",
    free=True,
  )
  checkpoint: str | None = flag(
    None,
    "Instead of --run: a directory of checkpoints made elsewhere, with "
    "--dataset, --model, --width and --stem. There is no attack to score.",
    free=True,
  )
  dataset: str | None = flag(
    None,
    "With --checkpoint; with --run, where the run's .npz file is now.",
    free=True,
  )
  data_source: str = flag(
    "auto", "Where the bytes come from, as in training.", free=True
  )
  data_dir: str | None = flag(None, "As in training.", free=True)
  defender_fraction: float | None = flag(
    None,
    "With --checkpoint: the share of the training set that is used (default: "
    "0.05).",
    above=0,
    below=1,
  )
  model: str | None = flag(
    None, f"With --checkpoint: {', '.join(MODELS)} (default: resnet18)."
  )
  width: int | None = flag(
    None, "With --checkpoint: filters of the first stage (default: 64)."
  )
  stem: str | None = flag(
    None, "With --checkpoint: the ResNet's stem (default: cifar)."
  )
  seed: int = flag(
    0, "Of what the defence draws; the run's own comes to it.", low=0
  )
  eval_images: int | None = flag(
    None,
    "Test images to score on (default: all; where STRIP takes part, 2000).",
    low=2,
  )
  output: str | None = flag(
    None,
    "Where results go (default: defenses/NAME in the run, or beside the "
    "checkpoints).",
    free=True,
  )
  overwrite: bool = flag(
    False, "Starts over where there are results.", free=True
  )
  profile: str | None = flag(
    None,
    "Directory for a trace of all of it, for Perfetto or TensorBoard; of "
    "pruning_aware, of three calls of its training.",
    free=True,
  )


def check(config: Config) -> None:
  """Checks the flags.

  Raises:
    UserError: one is missing, contradicts another or is out of range.
  """
  if (config.run is None) == (config.checkpoint is None):
    raise UserError(
      "take --run=runs/NAME, or --checkpoint=DIR with --dataset: one of them"
    )
  if config.checkpoint is not None and config.dataset is None:
    raise UserError("--checkpoint needs --dataset: the data it was trained on")
  if config.run is not None:
    for name in ("model", "width", "stem", "defender_fraction"):
      if getattr(config, name) is not None:
        raise UserError(
          f"--{name} goes with --checkpoint: a run has its own, so leave it out"
        )
    if config.dataset and not config.dataset.endswith(".npz"):
      raise UserError(
        "--dataset goes with --checkpoint, or says where the .npz file of a "
        "run is now: leave it out"
      )
  check_ranges(config)


def check_ranges(config: Any) -> None:
  """Checks every number of a configuration against the ends of its field.

  Args:
    config: a dataclass whose fields are of `flag`.

  Raises:
    UserError: one is out of range.
  """
  for field in dataclasses.fields(config):
    _check_range(field, getattr(config, field.name))


def _check_range(field: dataclasses.Field, value: Any) -> None:
  ends = field.metadata
  if value is None or isinstance(value, str | bool):
    return
  fits = (
    math.isfinite(value)
    and value >= ends.get("low", -math.inf)
    and value > ends.get("above", -math.inf)
    and value <= ends.get("high", math.inf)
    and value < ends.get("below", math.inf)
  )
  if fits:
    return
  words = {
    "low": "at least {}",
    "above": "more than {}",
    "high": "at most {}",
    "below": "less than {}",
  }
  wanted = [
    text.format(ends[end]) for end, text in words.items() if end in ends
  ]
  raise UserError(
    f"--{field.name}={value} is out of range: take "
    f"{' and '.join(wanted) or 'a number'}"
  )


def identity(config: Config) -> dict[str, Any]:
  """What the outcome depends on, apart from the run itself; JSON-ready."""
  fields = {
    f.name: getattr(config, f.name)
    for f in dataclasses.fields(config)
    if not f.metadata.get("free")
  }
  return json.loads(json.dumps(fields))  # tuples as they will be read back
