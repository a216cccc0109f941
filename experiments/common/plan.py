"""The members of a group, and what `--dry_run` prints."""

import dataclasses

from bdjax import models
from bdjax.data import Splits
from experiments.common.config import Config, identity
from experiments.common.population import at_once, estimated_bytes
from experiments.common.program import Program


def members(setting: Config) -> list[Config]:
  """A configuration for each of the seeds; itself where it has but one."""
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


def describe(config: Config, programs: list[Program], splits: Splits) -> str:
  """The resolved configuration, parameters, memory and steps, as lines.

  Args:
    config: of the whole.
    programs: one a setting.
    splits: the data.
  """
  program = programs[-1]  # of the largest trigger, as a rule
  lines = [f"{name}: {value}" for name, value in identity(config).items()]
  memory = estimated_bytes(program, splits) / 2**20
  lines += [
    f"seeds: {config.seeds}",
    f"directory: {config.directory}",
    f"parameters: {models.count_parameters(program.model):,}",
    f"images: {len(splits.train.images):,} to train on, "
    f"{len(splits.defender.images):,} the defender's, "
    f"{len(splits.test.images):,} to test",
    f"steps: {program.total_steps:,} ({program.steps} a call, "
    f"{program.calls} calls an epoch)",
    f"estimated memory: {memory:,.0f} MiB on each device",
  ]
  runs = [m for each in programs for m in members(each.config)]
  if len(runs) > 1:
    width = at_once(config, program, splits)
    lines.append(f"members: {len(runs)}, {width} at a time")
    lines += [f"  {run.directory}" for run in runs]
  return "\n".join(lines)
