"""Batches cut into chunks whose intermediate results stay in the cache."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp


def cut(arrays: Sequence[jax.Array], max_size: int) -> list[jax.Array]:
  """Cut batches into chunks of one size, for `lax.map` and `lax.scan`.

  The size divides the batch if a divisor is near to `max_size`; else zeros
  fill up the last chunk, which costs a copy of the whole.

  Args:
    arrays: any number, each [N,...].
    max_size: most entries of a chunk; less than 1 means 1.

  Returns:
    Each as [chunks,size,...], size <= max_size.
  """
  n = arrays[0].shape[0]
  max_size = max(1, min(max_size, n))
  size = max(d for d in range(1, max_size + 1) if n % d == 0)
  if 2 * size <= max_size:
    chunks = -(-n // max_size)
    size = -(-n // chunks)
  return [_fill(x, -n % size).reshape(-1, size, *x.shape[1:]) for x in arrays]


def join(chunks: jax.Array, n: int) -> jax.Array:
  """Join [chunks,size,...] to the [n,...] that it was cut from."""
  return chunks.reshape(-1, *chunks.shape[2:])[:n]


def _fill(x, spare):
  if not spare:
    return x
  return jnp.pad(x, ((0, spare), *((0, 0) for _ in x.shape[1:])))
