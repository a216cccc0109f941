"""Flags that every defence has; each adds its own fields."""

import dataclasses
import json
from typing import Any

from bdjax.errors import UserError
from bdjax.models import MODELS


def flag(default: Any, help_text: str, **meta: Any) -> Any:
  """A field that is a flag; `free=True`: the outcome does not depend on it."""
  return dataclasses.field(
    default=default, metadata={"help": help_text, **meta}
  )


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
    None, "With --checkpoint; with --run, where the run's .npz file is now."
  )
  data_source: str = flag(
    "auto", "Where the bytes come from, as in training.", free=True
  )
  data_dir: str | None = flag(None, "As in training.", free=True)
  defender_fraction: float = flag(
    0.05, "With --checkpoint: the share of the training set that is used."
  )
  model: str = flag("resnet18", f"With --checkpoint: {', '.join(MODELS)}.")
  width: int = flag(64, "With --checkpoint: filters of the first stage.")
  stem: str = flag("cifar", "With --checkpoint: resnet18's stem.")
  seed: int = flag(0, "Of what the defence draws; the run has its own.")
  eval_images: int | None = flag(
    None, "Test images to score on (default: all; strip 2000).", free=False
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


def check(config: Config) -> None:
  """Checks the flags that all defences share.

  Raises:
    UserError: one is missing, contradicts another or is out of range.
  """
  if (config.run is None) == (config.checkpoint is None):
    raise UserError(
      "take --run=runs/NAME, or --checkpoint=DIR with --dataset: one of them"
    )
  if config.checkpoint is not None and config.dataset is None:
    raise UserError("--checkpoint needs --dataset: the data it was trained on")
  if config.seed < 0:
    raise UserError(f"--seed={config.seed} is out of range: take 0 or more")
  if config.eval_images is not None and config.eval_images < 1:
    raise UserError(
      f"--eval_images={config.eval_images} is out of range: take 1 or more"
    )


def identity(config: Config) -> dict[str, Any]:
  """What the outcome depends on, apart from the run itself; JSON-ready."""
  fields = {
    f.name: getattr(config, f.name)
    for f in dataclasses.fields(config)
    if not f.metadata.get("free")
  }
  return json.loads(json.dumps(fields))  # tuples as they will be read back
