"""What `--dry_run` prints."""

import jax
import jax.numpy as jnp

from bdjax import models
from bdjax.data import Splits
from experiments.common.config import identity
from experiments.common.program import Program


def describe(program: Program, splits: Splits) -> str:
  """The resolved configuration, parameters, memory and steps, as lines."""
  config = program.config
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
  return "\n".join(lines)


def estimated_bytes(program: Program, splits: Splits) -> int:
  """Device bytes of the compiled training call, as XLA plans them."""
  images = jax.ShapeDtypeStruct(splits.train.images.shape, jnp.uint8)
  carry = jax.eval_shape(program.create, jax.random.key(0), images)
  labels = jax.ShapeDtypeStruct(splits.train.labels.shape, jnp.int32)
  key = jax.eval_shape(lambda: jax.random.key(0))
  lowered = program.call.lower(carry, key, images, labels, labels, 0)
  plan = lowered.compile().memory_analysis()
  return plan.argument_size_in_bytes + plan.temp_size_in_bytes
