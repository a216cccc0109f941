"""The configuration of a defence's run."""

import dataclasses

from bdjax import settings as settings_lib
from bdjax.errors import UserError
from bdjax.models import MODELS
from bdjax.settings import setting

# What a run has of its own, and weights made elsewhere have not.
ELSEWHERE = ("model", "width", "stem", "defender_fraction")


@dataclasses.dataclass(frozen=True)
class DefenseConfig:
  """A defence's run: every setting but those of the method."""

  run: str | None = setting(
    None,
    "Run to defend, runs/NAME; of a group (runs/NAME-seeds), all its runs.",
    free=True,
    group="network",
  )
  checkpoint: str | None = setting(
    None,
    "Directory of checkpoints made elsewhere, in place of run, with dataset, "
    "model, width and stem. There is no attack to score.",
    free=True,
    group="network",
  )
  dataset: str | None = setting(
    None,
    "Data set, with checkpoint; with run, where its .npz file is now.",
    free=True,
    group="network",
  )
  data_source: str = setting(
    "auto", "Source of the bytes, as in training.", free=True, group="network"
  )
  data_dir: str | None = setting(
    None, "Directory of data, as in training.", free=True, group="network"
  )
  defender_fraction: float | None = setting(
    None,
    "Share of the training set that is used, with checkpoint (default: 0.05).",
    above=0,
    below=1,
    group="network",
  )
  model: str | None = setting(
    None,
    "Network, with checkpoint (default: resnet18).",
    choices=tuple(MODELS),
    group="network",
  )
  width: int | None = setting(
    None,
    "Filters of the first stage, with checkpoint (default: 64).",
    low=1,
    group="network",
  )
  stem: str | None = setting(
    None,
    "Stem of the ResNets, with checkpoint (default: cifar).",
    choices=("cifar", "imagenet"),
    group="network",
  )
  seed: int = setting(
    0,
    "Random seed of what the defence draws; the run's own is folded into it.",
    low=0,
    high=2**31 - 1,
    group="run",
  )
  eval_images: int | None = setting(
    None,
    "Test images to score on (default: all; where STRIP takes part, 2000).",
    low=2,
    group="run",
  )
  null_runs: str | None = setting(
    None,
    "Clean runs or groups of runs, separated by commas: they get the same "
    "defence and give the p-value of the verdict (neural_cleanse only).",
    free=True,
    group="run",
  )
  output: str | None = setting(
    None,
    "Directory of the results (default: defenses/NAME in the run, or beside "
    "the checkpoints).",
    free=True,
    group="run",
  )
  overwrite: bool = setting(
    False, "Start over where there are results.", free=True, group="run"
  )
  profile: str | None = setting(
    None,
    "Directory for a trace of all of it, for Perfetto or xprof.",
    free=True,
    group="run",
  )


def check(config: DefenseConfig) -> None:
  """Check the settings.

  Raises:
    UserError: one is missing, contradicts another or is out of range.
  """
  if (config.run is None) == (config.checkpoint is None):
    raise UserError(
      "run must be given, as runs/NAME, or checkpoint with dataset: one of them"
    )
  if config.checkpoint is not None and config.dataset is None:
    raise UserError("dataset must be given with checkpoint: its training data")
  if config.run is not None:
    for name in ELSEWHERE:
      if getattr(config, name) is not None:
        raise UserError(f"{name} must be left out with run, which has its own")
    if config.dataset and not config.dataset.endswith(".npz"):
      raise UserError(
        "dataset must be left out with run, unless it says where the run's "
        ".npz file is now"
      )
  settings_lib.check(config)
