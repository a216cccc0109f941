"""What a configuration would do: `--dry_run`."""

import jax
import jax.numpy as jnp

from bdjax import models
from bdjax.batch import Batch
from bdjax.data import Splits
from bdjax.runs.config import RunConfig, identity
from bdjax.runs.run import prepare
from bdjax.runs.setup import Setup
from bdjax.runs.sweep import seed_runs


def describe(config: RunConfig) -> str:
  """Return configuration, parameters, memory and steps of a run, as lines.

  Args:
    config: need not be resolved.

  Raises:
    UserError: something the user can put right.
  """
  plan, splits, setups = prepare(config)
  config, setup = plan.config, setups[-1]  # of the largest trigger, as a rule
  lines = [f"{name}: {value}" for name, value in identity(config).items()]
  memory = estimate_bytes(setup, splits) / 2**20
  lines += [
    f"seeds: {config.seeds}",
    f"directory: {config.directory}",
    f"parameters: {models.count_parameters(setup.model):,}",
    f"images: {len(splits.train.images):,} to train on, "
    f"{len(splits.defender.images):,} the defender's, "
    f"{len(splits.test.images):,} to test",
    f"steps: {setup.total_steps:,} ({setup.steps} a call, {setup.calls} calls "
    "an epoch)",
    f"estimated memory: {memory:,.0f} MiB on each device",
  ]
  runs = [run for each in setups for run in seed_runs(each.config)]
  if len(runs) > 1:
    lines.append(f"runs: {len(runs)}")
    lines += [f"  {run.directory}" for run in runs]
  return "\n".join(lines)


def estimate_bytes(setup: Setup, splits: Splits) -> int:
  """Return device bytes of the compiled training call, as XLA plans them."""
  total = len(splits.train.labels)
  images = jax.ShapeDtypeStruct(splits.train.images.shape, jnp.uint8)
  labels = jax.ShapeDtypeStruct((total,), jnp.int32)
  roles = jax.ShapeDtypeStruct((total,), jnp.int8)
  carry = jax.eval_shape(setup.init, jax.random.key(0), images)
  key = jax.eval_shape(lambda: jax.random.key(0))
  lowered = setup.call.lower(
    carry, key, Batch(images, labels, roles), labels, 0, *setup.setting
  )
  plan = lowered.compile().memory_analysis()
  return plan.argument_size_in_bytes + plan.temp_size_in_bytes
