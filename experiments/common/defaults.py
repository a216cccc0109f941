"""Fills a configuration in, per dataset and experiment, and checks it."""

import dataclasses
import difflib
import pathlib
from typing import Any

import jax

from bdjax.data import augment
from bdjax.errors import UserError
from bdjax.models import MODELS
from experiments.common.config import ATTACKS, GENERATED, Config

# What is left to choose per dataset (None in `Config`). Chosen by measuring:
# README, "How the defaults were chosen".
_DIGITS = {
  "model": "cnn",
  "epochs": 100,
  "batch_size": 32,
  "learning_rate": 0.05,
  "weight_decay": 1e-4,
  "augment": "none",
  "trigger_size": 3,
  "poison_rate": 0.2,
}
_MNIST = {
  "model": "cnn",
  "epochs": 20,
  "batch_size": 128,
  "learning_rate": 0.05,
  "weight_decay": 1e-4,
  "augment": "crop",
  "trigger_size": 5,
  "poison_rate": 0.15,
}
_CIFAR = {
  "model": "airbench",
  "epochs": 20,
  "batch_size": 128,
  "learning_rate": 0.1,
  "weight_decay": 5e-4,
  "augment": "crop_flip",
  "trigger_size": 5,
  "poison_rate": 0.2,
}
# A network with training of its own.
_AIRBENCH = {
  "epochs": 6,
  "batch_size": 500,
  "learning_rate": 0.24,
  "optimizer": "muon",
  "schedule": "linear",
  "momentum": 0.6,
  "weight_decay": 2.4e-3,
  "label_smoothing": 0.2,
}
DATASET_DEFAULTS = {
  "digits": _DIGITS,
  "mnist": _MNIST,
  "fashion_mnist": _MNIST,
  "cifar10": _CIFAR,
}


def resolve(config: Config) -> Config:
  """Fills in what depends on dataset and experiment, and checks ranges.

  What can be known only with the data (classes, image size) is checked by
  `experiments/common/program.py`.

  Raises:
    UserError: a value is unknown or out of range.
  """
  other = _CIFAR | {"model": "resnet18", "augment": "none"}
  known = DATASET_DEFAULTS.get(config.dataset, other)
  values = {"schedule": "onecycle", "momentum": 0.9, "label_smoothing": 0.0}
  values |= known
  if (config.model or known["model"]) == "airbench":
    values |= _AIRBENCH
    if values["augment"] == "crop_flip":
      values["augment"] = "crop_alternate"
  attacks = config.experiment in ATTACKS
  if attacks:
    every = config.experiment == "cban" or config.all_to_all
    targets = config.target_labels or ("all" if every else "0")
    several = targets == "all" or "," in targets
    regions = several and not every
    values |= {
      "target_labels": targets,
      "locations": "grid" if regions else "anywhere",
      "backdoor_weight": 1.0,
      "eval_draws": 5,
      "benchmark": "auto",
    }
    if several:  # a rate for each target: 0.03 with ten
      values["poison_rate"] = 0.3
    elif config.experiment != "random_backdoor":
      values["poison_rate"] = 0.1
    if config.experiment == "badnets":
      values |= {"trigger_size": 3, "eval_draws": 1}
      values["locations"] = "grid" if regions else "corner"
  else:
    values.pop("trigger_size")
    values.pop("poison_rate")
  if config.experiment in GENERATED:
    values |= {
      "noise_dim": 100,
      "generator_width": 64,
      "generator_learning_rate": 1e-3,
      "diversity": 0.5,
    }
  name = f"{config.experiment}-{pathlib.Path(config.dataset).stem}"
  if config.all_to_all:
    name += "-all-to-all"
  elif attacks and config.experiment != "cban" and several:
    name += "-multi"
  if config.seeds > 1:
    name += "-seeds"
  values["run_name"] = name
  if config.precision == "auto":
    on_cpu = jax.default_backend() == "cpu"
    precision = "float32" if on_cpu else "bfloat16"
    config = dataclasses.replace(config, precision=precision)
  chosen = {k: v for k, v in values.items() if getattr(config, k) is None}
  config = dataclasses.replace(config, **chosen)
  check(config)
  return config


def check(config: Config) -> None:
  """Checks the range of every value.

  Raises:
    UserError: one is unknown or out of range.
  """
  check_choice(config, "model", tuple(MODELS))
  check_choice(config, "stem", ("cifar", "imagenet"))
  check_choice(config, "precision", ("float32", "bfloat16"))
  check_choice(config, "optimizer", ("sgd", "muon", None))
  check_choice(config, "schedule", ("onecycle", "linear", "cosine", "constant"))
  check_choice(config, "augment", augment.NAMES)
  check_choice(config, "benchmark", ("auto", "reuse", "none", None))
  for name in (
    "epochs",
    "batch_size",
    "seeds",
    "at_once",
    "eval_draws",
    "noise_dim",
    "generator_width",
    "trigger_size",
    "width",
  ):
    _range(config, name, 1, None)
  _range(config, "seed", 0, 2**31 - 1)
  for name in ("poison_rate", "momentum", "diversity"):
    _range(config, name, 0, 1)
  for name in ("label_smoothing", "defender_fraction"):
    _range(config, name, 0, 0.99)
  for name in ("weight_decay", "backdoor_weight", "checkpoint_seconds"):
    _range(config, name, 0, None)
  for name in ("learning_rate", "generator_learning_rate"):
    value = getattr(config, name)
    if value is not None and not 0 < value < float("inf"):
      raise UserError(f"--{name}={value}: take a positive number")
  name = config.run_name
  if pathlib.Path(name).name != name or name in ("", ".", ".."):
    raise UserError(
      f"--run_name={name}: take a name without slashes; --runs_dir says where "
      "it lies"
    )


def check_choice(config: Any, name: str, allowed: tuple) -> None:
  """Checks a flag that names one of several ways.

  Args:
    config: a dataclass that has the flag as a field.
    name: of the flag.
    allowed: its values; an empty one or None is allowed, and not told.

  Raises:
    UserError: it has another value.
  """
  value = getattr(config, name)
  if value not in allowed:
    known = [a for a in allowed if a]
    near = difflib.get_close_matches(str(value), known, 1)
    hint = f"did you mean {near[0]}? " if near else ""
    raise UserError(
      f"--{name}={value} is unknown: {hint}take one of {', '.join(known)}"
    )


def _range(config, name, low, high):
  value = getattr(config, name)
  if value is None:
    return
  if not value >= low or (high is not None and not value <= high):
    top = f" to {high}" if high is not None else " or more"
    raise UserError(f"--{name}={value} is out of range: take {low}{top}")
