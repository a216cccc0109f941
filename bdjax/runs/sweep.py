"""Runs that differ in one or several settings: expanded once, into a plan.

A sweep's directory has one for each setting, which is a run or, with several
seeds, a group of runs: `badnets-mnist-rates-seeds/rate-0.05/seed-0/`.
"""

import dataclasses
import itertools
import pathlib
from typing import Any, NamedTuple

from bdjax import plots
from bdjax import settings as settings_lib
from bdjax.attacks import AttackMethod
from bdjax.errors import UserError
from bdjax.runs.combine import add
from bdjax.runs.config import RunConfig, identity
from bdjax.runs.directory import figure_path
from bdjax.runs.resolve import resolve

SWEEP_SCORES = ("clean_accuracy", "attack_success_rate")


class Plan(NamedTuple):
  """What a configuration means: settings, and the seeds of each.

  Attributes:
    config: of the whole.
    settings: of each setting of a sweep, in order; the whole itself where
      nothing is swept.
  """

  config: RunConfig
  settings: list[RunConfig]

  @property
  def is_sweep(self) -> bool:
    """Whether something is swept."""
    return bool(self.config.axes)


def sweep_fields(method: AttackMethod) -> list[dataclasses.Field]:
  """Return the settings of an attack that can be swept."""
  fields = dataclasses.fields(method.settings)
  return [f for f in fields if f.metadata.get("sweep")]


def parse_axis(field: dataclasses.Field, text: str) -> tuple[Any, ...]:
  """Read the values of a swept setting.

  Args:
    field: of the setting.
    text: values with commas.

  Raises:
    UserError: they are of the wrong type, out of range, or repeated.
  """
  flag, kind = field.metadata["sweep"], settings_lib.field_type(field)
  try:
    values = tuple(kind(part) for part in text.split(","))
  except ValueError:
    raise UserError(
      f"{flag} must be numbers with commas (got {text})"
    ) from None
  if len(set(values)) < len(values):
    raise UserError(f"{flag} must differ (got {text})")
  for value in values:
    try:
      settings_lib.check_value(field, value)
    except UserError as error:
      raise UserError(f"{flag}={text}: {error}") from None
  return values


def expand(config: RunConfig) -> Plan:
  """Resolve a configuration, and one for each of its settings.

  A setting is what the same run made alone would have, in the directory of the
  whole, and has the whole's seeds.

  Raises:
    UserError: a value is unknown or out of range.
  """
  if not config.axes:
    config = resolve(config)
    return Plan(config, [config])
  given = config.settings or config.method.settings()
  for name, _ in config.axes:
    if getattr(given, name) is not None and not _is_default(given, name):
      raise UserError(f"{name} must not be given when it is swept")
  plain = dataclasses.replace(config, axes=())
  whole = _whole(config, plain, given)
  settings = []
  names = [name for name, _ in config.axes]
  for values in itertools.product(*(values for _, values in config.axes)):
    changes = dict(zip(names, values, strict=True))
    words = (f"{_word(given, n)}-{_text(v)}" for n, v in changes.items())
    settings.append(
      resolve(
        dataclasses.replace(
          plain,
          settings=dataclasses.replace(given, **changes),
          runs_dir=str(whole.directory),
          run_name="-".join(words),
        )
      )
    )
  return Plan(whole, settings)


def _whole(config, plain, given) -> RunConfig:
  """Return what all settings have in common, named by what is swept."""
  first = {name: values[0] for name, values in config.axes}
  single = resolve(
    dataclasses.replace(
      plain, seeds=1, settings=dataclasses.replace(given, **first)
    )
  )
  name = config.run_name
  if name is None:
    words = [f"{_word(given, name)}s" for name in first]
    words += ["seeds"] if config.seeds > 1 else []
    name = "-".join([single.run_name.removesuffix("-multi"), *words])
  nothing = dict.fromkeys(first)
  return dataclasses.replace(
    single,
    run_name=name,
    seeds=config.seeds,
    axes=config.axes,
    settings=dataclasses.replace(single.settings, **nothing),
  )


def _is_default(settings, name) -> bool:
  (field,) = (f for f in dataclasses.fields(settings) if f.name == name)
  return getattr(settings, name) == field.default


def _word(settings, name: str) -> str:
  """Return the word of a setting in directory names: `rate` of poison_rates."""
  (field,) = (f for f in dataclasses.fields(settings) if f.name == name)
  plural = field.metadata["sweep"].removesuffix("_sweep").removesuffix("s")
  return plural.split("_")[-1]


def _text(value: Any) -> str:
  return f"{value:g}" if isinstance(value, float) else str(value)


def seed_runs(setting: RunConfig) -> list[RunConfig]:
  """Return a configuration for each seed; itself where it has but one."""
  if setting.seeds == 1:
    return [setting]
  return [
    dataclasses.replace(
      setting,
      seed=seed,
      seeds=1,
      runs_dir=str(setting.directory),
      run_name=f"seed-{seed}",
    )
    for seed in range(setting.seed, setting.seed + setting.seeds)
  ]


def combine_settings(plan: Plan, results: list[dict[str, Any]]) -> dict:
  """Return the results of a sweep: `settings`, in order, with their scores.

  Args:
    plan: of the sweep.
    results: `results.json` of each setting.
  """
  names = [name for name, _ in plan.config.axes]
  rows = []
  for setting, result in zip(plan.settings, results, strict=True):
    row = {"directory": setting.run_name}
    row |= {name: getattr(setting.settings, name) for name in names}
    kept = ("measured", "difference", "seeds")
    rows.append(row | {name: result[name] for name in kept if name in result})
  first = results[0]
  kept = ("versions", "device", "data", "git_commit", "parameters")
  return {
    "config": identity(plan.config),
    "settings": rows,
    **{name: first[name] for name in kept},
    "seconds": add([result["seconds"] for result in results]),
    "runs": [setting.run_name for setting in plan.settings],
  }


def draw_sweep(results: dict[str, Any], directory: pathlib.Path) -> None:
  """Write `figures/sweep.png`: the scores against what is swept first.

  Args:
    results: from `combine_settings`.
    directory: of the sweep.
  """
  field, *others = results["config"]["swept"]
  rows = results["settings"]
  values = list(dict.fromkeys(float(row[field]) for row in rows))
  panels = {}
  for score in SWEEP_SCORES:
    lines: dict[str, list] = {}
    for row in rows:
      name = ", ".join(f"{_title(o)} {row[o]}" for o in others)
      lines.setdefault(name, []).append(row["measured"][score])
    panels[score.replace("_", " ")] = lines
  plots.sweep(figure_path(directory, "sweep"), values, _title(field), panels)


def _title(field: str) -> str:
  return field.replace("_", " ").removesuffix("s")
