"""Fills a configuration in, by data set, network and attack, and checks it."""

import dataclasses
import pathlib
from typing import Any

import jax

from bdjax import settings as settings_lib
from bdjax.errors import UserError
from bdjax.runs.config import RunConfig, fields

# What airbench is trained with, whatever the data set (Jordan 2024).
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


def resolve(config: RunConfig) -> RunConfig:
  """Fill in what depends on data set and attack, and check every value.

  What can be known only with the data (classes, image size) is checked by
  `runs.setup`.

  Raises:
    UserError: a value is unknown or out of range.
  """
  if config.attack is not None:
    config = _with_attack(config)
  filled = settings_lib.fill_defaults(config, config.dataset)
  model = config.model or filled.model
  if model == "airbench":
    config = _filled(config, _AIRBENCH)
  if config.augment is None and config.dataset == "cifar10":
    alternate = model == "airbench"
    name = "crop_alternate" if alternate else "crop_flip"
    config = dataclasses.replace(config, augment=name)
  if config.precision == "auto":
    on_cpu = jax.default_backend() == "cpu"
    precision = "float32" if on_cpu else "bfloat16"
    config = dataclasses.replace(config, precision=precision)
  for field in fields():
    by_dataset = field.metadata.get("by_dataset") or {}
    default = by_dataset.get(config.dataset, by_dataset.get("*"))
    config = _filled(config, {field.name: default})
  config = _filled(config, {"run_name": _default_name(config)})
  for field in fields():
    settings_lib.check_value(field, getattr(config, field.name))
  name = config.run_name
  if pathlib.Path(name).name != name or name in ("", ".", ".."):
    raise UserError(
      f"run_name must be a name without slashes (got {name}): runs_dir says "
      "where it lies"
    )
  return config


def _with_attack(config: RunConfig) -> RunConfig:
  """Fill in the attack's settings, and check them."""
  method = config.method
  given = config.settings or method.settings()
  several = given.target_labels is not None and given.has_several_targets
  settings_lib.check(given)
  settings = given.filled(config.dataset)
  if settings.poison is None:
    settings = dataclasses.replace(settings, poison=method.modes[0])
  if settings.poison not in method.modes:
    raise UserError(
      f"poison must be {' or '.join(method.modes)} for {method.name} (got "
      f"{settings.poison})"
    )
  settings_lib.check(settings)
  if settings.poison_rate is None and settings.poison == "batch":
    raise UserError("class_rate must be left out where batches are poisoned")
  covers = getattr(settings, "cover_rate", 0.0)
  if (settings.poison_rate or 0.0) + covers > 1.0:
    raise UserError(
      f"cover_rate must be at most {1 - settings.poison_rate:.4g} beside "
      f"poison_rate {settings.poison_rate:g} (got {covers:g})"
    )
  config = dataclasses.replace(config, settings=settings)
  name = _default_name(config)
  if several and not settings.all_to_all:
    name += "-multi"
  if config.seeds > 1:
    name += "-seeds"
  return _filled(config, {"run_name": name})


def _default_name(config: RunConfig) -> str:
  name = f"{config.experiment}-{pathlib.Path(config.dataset).stem}"
  if config.settings is not None:
    if config.settings.all_to_all:
      name += "-all-to-all"
    if config.settings.poison != config.method.modes[0]:
      name += f"-{config.settings.poison}"
    return name
  return name + ("-seeds" if config.seeds > 1 else "")


def _filled(config: RunConfig, values: dict[str, Any]) -> RunConfig:
  missing = {k: v for k, v in values.items() if getattr(config, k) is None}
  return dataclasses.replace(config, **missing)
