"""Runs that differ in poison rate, trigger size or target label.

A sweep's directory has one for each setting, which is a run or, with several
seeds, a group of runs: `badnets-mnist-rates-seeds/rate-0.05/seed-0/`.
"""

import dataclasses
import itertools
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

from bdjax import plots
from bdjax.errors import UserError
from experiments.common.config import SWEEPS, Config, identity
from experiments.common.defaults import resolve
from experiments.common.results import TITLES, largest, sums


class Axis(NamedTuple):
  """One thing that is swept.

  Attributes:
    flag: takes its values, with commas.
    word: in the names of directories.
    parse: text -> one value.
    values: by their text in names.
  """

  flag: str
  word: str
  parse: Callable[[str], Any]
  values: dict[str, Any] = {}

  @property
  def field(self) -> str:
    """The flag that takes a single value."""
    return SWEEPS[self.flag]


_AXES = (
  Axis("poison_rates", "rate", float),
  Axis("trigger_sizes", "size", int),
  Axis("target_sweep", "target", int),
)


def axes(config: Config) -> list[Axis]:
  """What a configuration sweeps, `[]` where it is of one run or its seeds.

  Raises:
    UserError: not numbers, or twice the same.
  """
  found = []
  for axis in _AXES:
    text = getattr(config, axis.flag)
    if text is None:
      continue
    try:
      values = [axis.parse(part) for part in text.split(",")]
    except ValueError:
      raise UserError(
        f"--{axis.flag}={text}: take numbers with commas"
      ) from None
    names = [f"{value:g}" for value in values]
    for name in names:
      if names.count(name) > 1:
        raise UserError(f"--{axis.flag}={text} names {name} twice")
    if axis.field == "target_labels":  # which is a list of its own
      values = list(map(str, values))
    found.append(axis._replace(values=dict(zip(names, values, strict=True))))
  return found


def expand(config: Config) -> tuple[Config, list[Config]]:
  """Resolves a configuration, and one for each of its settings.

  Returns:
    The whole's, and each setting's; where nothing is swept, both are of the
    same run. A setting is what the same run made alone would have, in the
    directory of the whole, and has the whole's seeds.

  Raises:
    UserError: a value is unknown or out of range.
  """
  swept = axes(config)
  if not swept:
    config = resolve(config)
    return config, [config]
  for axis in swept:
    if getattr(config, axis.field) is not None:
      raise UserError(
        f"--{axis.flag} contradicts --{axis.field}: leave one of them out"
      )
  plain = dataclasses.replace(config, **dict.fromkeys(SWEEPS))
  whole = _whole(config, plain, swept)
  settings = []
  for names in itertools.product(*(axis.values for axis in swept)):
    chosen = zip(swept, names, strict=True)
    changes = {axis.field: axis.values[name] for axis, name in chosen}
    words = (f"{a.word}-{n}" for a, n in zip(swept, names, strict=True))
    changes |= {"runs_dir": str(whole.directory), "run_name": "-".join(words)}
    settings.append(_resolve(dataclasses.replace(plain, **changes), swept))
  return whole, settings


def _whole(config: Config, plain: Config, swept: list[Axis]) -> Config:
  """What all settings have in common, under a name that says what is swept."""
  first = {a.field: next(iter(a.values.values())) for a in swept}
  one = _resolve(dataclasses.replace(plain, seeds=1, **first), swept)
  name = config.run_name
  if name is None:
    words = [f"{a.word}s" for a in swept]
    words += ["seeds"] if config.seeds > 1 else []
    name = "-".join([one.run_name, *words])
  flags = {flag: getattr(config, flag) for flag in SWEEPS}
  nothing = dict.fromkeys(first)
  return dataclasses.replace(
    one, run_name=name, seeds=config.seeds, **flags, **nothing
  )


def _resolve(config: Config, swept: list[Axis]) -> Config:
  """Resolves, and names the user's own flag where a value is refused."""
  try:
    return resolve(config)
  except UserError as error:
    for axis in swept:
      if str(error).startswith(f"--{axis.field}="):
        values = ",".join(axis.values)
        raise UserError(f"--{axis.flag}={values}: {error}") from error
    raise


def combine(
  config: Config, settings: list[Config], found: list[dict[str, Any]]
) -> dict[str, Any]:
  """The results of a sweep: `settings`, in order, with the scores of each.

  Args:
    config: of the whole.
    settings: from `expand`.
    found: `results.json` of each.
  """
  fields = [axis.field for axis in axes(config)]
  rows = []
  for setting, each in zip(settings, found, strict=True):
    row = {"directory": setting.run_name}
    row |= {field: getattr(setting, field) for field in fields}
    kept = ("measured", "difference", "seeds")
    rows.append(row | {name: each[name] for name in kept if name in each})
  first = found[0]
  kept = ("versions", "device", "data", "git_commit", "parameters")
  return {
    "config": identity(config),
    "settings": rows,
    **{name: first[name] for name in kept},
    "seconds": sums([each["seconds"] for each in found]),
    "peak_memory_bytes": largest([each["peak_memory_bytes"] for each in found]),
    "members": [setting.run_name for setting in settings],
  }


def draw(out: dict[str, Any], directory: pathlib.Path) -> None:
  """Writes `figures/sweep.png`: the scores against what is swept first.

  Args:
    out: from `combine`.
    directory: of the sweep.
  """
  field, *others = out["config"]["swept"]
  rows = out["settings"]
  values = list(dict.fromkeys(float(row[field]) for row in rows))
  panels = {}
  for score in ("clean_accuracy", "attack_success_rate"):
    lines: dict[str, list] = {}
    for row in rows:
      name = ", ".join(f"{_title(o)} {row[o]}" for o in others)
      lines.setdefault(name, []).append(row["measured"][score])
    panels[TITLES[score]] = lines
  folder = directory / "figures"
  folder.mkdir(exist_ok=True)
  plots.sweep(folder / "sweep.png", values, _title(field), panels)


def _title(field: str) -> str:
  return field.replace("_", " ").removesuffix("s")
