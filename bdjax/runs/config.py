"""The configuration of a run: every setting but those of its attack."""

import dataclasses
import hashlib
import pathlib
from typing import Any

from bdjax import settings as settings_lib
from bdjax.attacks import ATTACKS, AttackMethod
from bdjax.attacks.settings import AttackSettings
from bdjax.data import NAMES, augment
from bdjax.errors import UserError
from bdjax.models import MODELS
from bdjax.settings import setting

FORMAT = 2  # of `config.json`; raised when older runs can no longer be read
_SMALL = {"digits": 0.05, "mnist": 0.05, "fashion_mnist": 0.05}


def _data(default, text, **meta):
  return setting(default, text, group="data", **meta)


def _model(default, text, **meta):
  return setting(default, text, group="model", **meta)


def _training(default, text, **meta):
  return setting(default, text, group="training", **meta)


def _run(default, text, **meta):
  return setting(default, text, group="run", free=True, **meta)


@dataclasses.dataclass(frozen=True)
class RunConfig:
  """A training run. None is filled in by `resolve`.

  The first three fields are no flags: the attack's name, None for a clean run;
  its settings; the SHA-256 of the user's own data, filled in when they are
  read. `axes` is what is swept, field -> values, as tuples.
  """

  attack: str | None = None
  settings: AttackSettings | None = None
  data_sha256: str | None = None
  axes: tuple[tuple[str, tuple[Any, ...]], ...] = ()

  dataset: str = _data(
    "digits", f"Data set: {', '.join(NAMES)}, or the path of an .npz file."
  )
  data_source: str = _data(
    "auto",
    "Source of the bytes: auto, builtin, tfds, npm, idx or file.",
    free=True,
  )
  data_dir: str | None = _data(
    None,
    "Directory of TFDS or of idx files (default: TFDS's own).",
    free=True,
  )
  defender_fraction: float = _data(
    0.05,
    "Share of the training images kept out for the defender.",
    low=0,
    high=0.99,
  )
  augment: str | None = _data(
    None,
    "Augmentation: none, crop (shifts by up to 2 pixels), crop_flip (by up to "
    "4, and mirrors half of them) or crop_alternate (by up to 2, and mirrors "
    "in every other epoch).",
    choices=augment.NAMES,
    by_dataset={
      "mnist": "crop",
      "fashion_mnist": "crop",
      "cifar10": "crop_alternate with airbench, else crop_flip",
      "*": "none",
    },
  )

  model: str | None = _model(
    None,
    "Network.",
    choices=tuple(MODELS),
    by_dataset={
      "digits": "cnn",
      "mnist": "cnn",
      "fashion_mnist": "cnn",
      "cifar10": "airbench",
      "*": "resnet18",
    },
  )
  width: int = _model(
    64, "Filters of the first stage; 64 is the literature's.", low=1
  )
  stem: str = _model(
    "cifar",
    "Stem of the ResNets: cifar (3x3) or imagenet (7x7).",
    choices=("cifar", "imagenet"),
  )
  precision: str = _model(
    "auto",
    "Precision: float32, bfloat16, or auto (bfloat16 on accelerators).",
    choices=("auto", "float32", "bfloat16"),
  )

  epochs: int | None = _training(
    None,
    "Passes over the data; airbench 6.",
    low=1,
    by_dataset={"digits": 100, "*": 20},
  )
  batch_size: int | None = _training(
    None,
    "Images a step, over all devices; airbench 500.",
    low=1,
    by_dataset={"digits": 32, "*": 128},
  )
  learning_rate: float | None = _training(
    None,
    "Peak learning rate; airbench 0.24.",
    above=0,
    by_dataset=_SMALL | {"*": 0.1},
  )
  optimizer: str | None = _training(
    None,
    "Optimiser: sgd or muon; airbench muon.",
    choices=("sgd", "muon"),
    by_dataset={"*": "sgd"},
  )
  schedule: str | None = _training(
    None,
    "Learning rate schedule; airbench linear.",
    choices=("onecycle", "linear", "cosine", "constant"),
    by_dataset={"*": "onecycle"},
  )
  momentum: float | None = _training(
    None,
    "Nesterov momentum; airbench 0.6.",
    low=0,
    high=1,
    by_dataset={"*": 0.9},
  )
  weight_decay: float | None = _training(
    None,
    "Weight decay of kernels, coupled, as in PyTorch's SGD; with muon of the "
    "head; airbench 2.4e-3.",
    low=0,
    by_dataset=dict.fromkeys(_SMALL, 1e-4) | {"*": 5e-4},
  )
  label_smoothing: float | None = _training(
    None,
    "Share of the label spread over all; airbench 0.2.",
    low=0,
    high=0.99,
    by_dataset={"*": 0.0},
  )
  seed: int = _training(
    0,
    "Random seed of data split, initialisation, batch order and triggers.",
    low=0,
    high=2**31 - 1,
  )
  seeds: int = _training(
    1, "Number of consecutive seeds, a run each.", low=1, free=True
  )
  test_time_augmentation: bool = setting(
    False, "Logits averaged over six views of a test image.", group="evaluation"
  )
  clean_run: str | None = setting(
    None,
    "Directory of the clean run to compare with, or to make the attack from "
    "(default: a finished run of `clean` with the same flags in runs_dir).",
    group="evaluation",
    free=True,
  )

  runs_dir: str = _run("runs", "Directory of all runs.")
  run_name: str | None = _run(
    None,
    "Directory of this run below runs_dir (default: ATTACK-DATASET and what is "
    "swept).",
  )
  overwrite: bool = _run(False, "Start over where a run of this name exists.")
  checkpoint_seconds: float = _run(
    60.0, "Longest training time between two checkpoints, in seconds.", low=0
  )
  profile: str | None = _run(
    None,
    "Directory for a trace of the second to the fourth call of the training, "
    "for Perfetto or xprof.",
  )
  dry_run: bool = _run(False, "Print what would be done, and do nothing.")

  @property
  def experiment(self) -> str:
    """The attack's name, or `clean`."""
    return self.attack or "clean"

  @property
  def method(self) -> AttackMethod:
    """The attack as a unit."""
    return ATTACKS[self.attack]

  @property
  def directory(self) -> pathlib.Path:
    """Where the run leaves its files."""
    return pathlib.Path(self.runs_dir).expanduser() / self.run_name


def fields() -> list[dataclasses.Field]:
  """Return the fields of `RunConfig` that are settings."""
  return [f for f in dataclasses.fields(RunConfig) if "help" in f.metadata]


def identity(config: RunConfig) -> dict[str, Any]:
  """Return what a run's outcome depends on, ready for JSON.

  That is, all but paths and ways of execution. Of the number of seeds only
  whether there are several, and of a sweep only what is swept: a group of three
  can become one of five.
  """
  out = {
    f.name: getattr(config, f.name)
    for f in fields()
    if not f.metadata.get("free")
  }
  if config.settings is not None:
    out |= settings_lib.identity(config.settings)
  picture = getattr(config.settings, "trigger", None)
  return out | {
    "attack": config.attack,
    "data_sha256": config.data_sha256,
    "trigger_sha256": _digest(picture) if picture else None,
    "group": config.seeds > 1,
    "swept": [name for name, _ in config.axes] or None,
    "format": FORMAT,
  }


def from_identity(stored: dict[str, Any]) -> RunConfig:
  """Return the configuration that `identity` tells.

  Args:
    stored: of `config.json`.

  Raises:
    UserError: it is of an older version, or of an attack that is not there.
  """
  check_format(stored)
  name = stored["attack"]
  if name is not None and name not in ATTACKS:
    raise UserError(f"attack must be one of {', '.join(ATTACKS)} (got {name})")
  settings = None
  if name is not None:
    kind = ATTACKS[name].settings
    known = {f.name for f in dataclasses.fields(kind)}
    settings = kind(**{k: v for k, v in stored.items() if k in known})
  known = {f.name for f in fields()} | {"data_sha256"}
  return RunConfig(
    name, settings, **{k: v for k, v in stored.items() if k in known}
  )


def check_format(stored: dict[str, Any]) -> None:
  """Refuse the configuration of a run that an older version made.

  Raises:
    UserError: its format is not `FORMAT`.
  """
  if stored.get("format") != FORMAT:
    raise UserError(
      "this run was made by an older version of bdjax: train it again under "
      "another run_name, or with overwrite"
    )


def differences(stored: dict[str, Any], config: dict[str, Any]) -> list[str]:
  """List where two identities differ, `NAME A there, B here` each."""
  return [
    f"{key} {stored.get(key)} there, {config.get(key)} here"
    for key in sorted(stored.keys() | config.keys())
    if stored.get(key) != config.get(key)
  ]


def _digest(path: str) -> str:
  try:
    content = pathlib.Path(path).expanduser().read_bytes()
  except OSError as error:
    raise UserError(
      f"trigger {path} cannot be read ({error.strerror})"
    ) from error
  return hashlib.sha256(content).hexdigest()
