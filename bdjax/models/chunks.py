"""Batches cut into chunks, so that what is made of one stays in the cache."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp


def cut(arrays: Sequence[jax.Array], most: int) -> list[jax.Array]:
  """Cuts batches into chunks of one size, for `lax.map` and `lax.scan`.

  The size divides the batch if one does that is near to `most`: else zeros
  fill up the last chunk, which costs a copy of the whole.

  Args:
    arrays: any number, each [N,...].
    most: entries of a chunk; less than 1 means 1.

  Returns:
    Each as [chunks,size,...], size <= most.
  """
  n = arrays[0].shape[0]
  most = max(1, min(most, n))
  size = max(d for d in range(1, most + 1) if n % d == 0)
  if 2 * size <= most:
    chunks = -(-n // most)
    size = -(-n // chunks)
  return [_fill(x, -n % size).reshape(-1, size, *x.shape[1:]) for x in arrays]


def join(chunks: jax.Array, n: int) -> jax.Array:
  """[chunks,size,...] to the [n,...] that it was cut from, without zeros."""
  return chunks.reshape(-1, *chunks.shape[2:])[:n]


def _fill(x, spare):
  if not spare:
    return x
  return jnp.pad(x, ((0, spare), *((0, 0) for _ in x.shape[1:])))
