"""States, and comparisons of them, for the tests of checkpoints."""

import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from bdjax.checkpoints import Checkpoints
from bdjax.training import TrainState


def make_state(step: int = 0, width: int = 5, tx: Any = None) -> TrainState:
  """A state with every kind of node: NamedTuples, empty ones, scalars."""
  tx = tx or optax.chain(
    optax.add_decayed_weights(1e-4),
    optax.sgd(optax.cosine_decay_schedule(0.1, 10), momentum=0.9),
  )
  key = jax.random.fold_in(jax.random.key(0), step)
  params = {
    "conv": {"kernel": jax.random.normal(key, (3, 3, 1, width))},
    "head": {
      "kernel": jax.random.normal(key, (width, 2)),
      "bias": jnp.array([jnp.nan, -0.0]),
    },
  }
  return TrainState(
    step=jnp.int32(step),
    params=params,
    batch_stats={"conv": {"mean": jnp.ones((width,), jnp.bfloat16)}},
    opt_state=tx.init(params),
  )


def make_empty(step: int = 0) -> TrainState:
  """The generator's state of an attack that learns no generator."""
  return TrainState(jnp.int32(step), {}, {}, optax.adam(1e-3).init({}))


def assert_same(actual: Any, expected: Any) -> None:
  """Equal in structure, dtype and every bit (NaN and -0.0 too)."""
  assert jax.tree.structure(actual) == jax.tree.structure(expected)
  for one, other in zip(
    jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True
  ):
    assert isinstance(one, jax.Array)
    assert (one.dtype, one.shape) == (other.dtype, other.shape)
    assert np.asarray(one).tobytes() == np.asarray(other).tobytes()


def save_steps(directory: pathlib.Path, losses: dict[int, float]) -> None:
  """Saves one step for every loss."""
  with Checkpoints(directory) as checkpoints:
    for step, loss in losses.items():
      checkpoints.save(
        step, make_state(step), make_empty(step), {"epoch": step}, loss
      )


def steps_on_disk(directory: pathlib.Path) -> list[int]:
  """The finished steps."""
  return sorted(int(p.name) for p in directory.iterdir() if p.name.isdigit())
