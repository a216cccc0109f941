"""Functions of a batch, mapped over sets of images of any size."""

import sys
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tqdm

from bdjax import compiler, sharding
from bdjax.models.base import Model

_CHUNK = 500  # images between two steps of the progress bar


def to_float(images: jax.Array) -> jax.Array:
  """Convert uint8 images to float32 in [0,1]."""
  return images.astype(jnp.float32) / 255.0


def to_uint8(images: jax.Array) -> jax.Array:
  """Round images in [0,1] to uint8."""
  return jnp.round(255.0 * jnp.clip(images, 0.0, 1.0)).astype(jnp.uint8)


def map_batches(
  one_batch: Callable[..., Any],
  arrays: tuple[jax.Array, ...],
  batch_size: int,
  mesh: jax.sharding.Mesh,
) -> Any:
  """Map a function over batches, under jit.

  The last batch is filled up with the last row, and the surplus cut off.

  Args:
    one_batch: `(number of the batch, images f32 [B,H,W,C], *others [B,...]) ->
      tree of [B,...]`.
    arrays: images uint8 [N,H,W,C], then any others [N,...].
    batch_size: B.
    mesh: where a batch is cut along.

  Returns:
    The tree, of [N,...].
  """
  total = arrays[0].shape[0]
  count = -(-total // batch_size)
  rows = jnp.minimum(jnp.arange(count * batch_size), total - 1)
  cut = sharding.along_batch(mesh)

  def body(args):
    number, rows = args
    rows = jax.lax.with_sharding_constraint(rows, cut)
    batch = [x[rows] for x in arrays]
    return one_batch(number, to_float(batch[0]), *batch[1:])

  batches = (jnp.arange(count), rows.reshape(count, batch_size))
  out = jax.lax.map(body, batches)
  return jax.tree.map(
    lambda x: x.reshape(count * batch_size, *x.shape[2:])[:total], out
  )


def over_images(
  function: Callable[[Any, jax.Array, jax.Array], Any],
  batch_size: int,
  mesh: jax.sharding.Mesh,
) -> Callable:
  """Compile a function of a batch for a whole set of images.

  Args:
    function: `(args, key, images f32 [B,H,W,C]) -> tree of [B,...]`.
    batch_size: B.
    mesh: where a batch is cut along.

  Returns:
    `(args, key, images u8 [N,H,W,C]) -> tree of [N,...]`; every batch has a
    key of its own.
  """

  def run(args, key, images):
    def one_batch(number, batch):
      return function(args, jax.random.fold_in(key, number), batch)

    return map_batches(one_batch, (images,), batch_size, mesh)

  return compiler.jit(run)


def predictions(model: Model) -> Callable:
  """Return the classification of a batch, for `over_images`.

  Returns:
    `(weights, key, images f32 [B,H,W,C]) -> int32 [B]`; the key is not used.
  """

  def predict(weights, key, images):
    del key
    logits, _ = model.apply(*weights, images)
    return logits.argmax(-1).astype(jnp.int32)

  return predict


def predict(model: Model, batch_size: int, mesh: jax.sharding.Mesh) -> Callable:
  """Compile the classification of a set of images.

  Returns:
    `(weights, images u8 [N,H,W,C]) -> int32 [N]`.
  """
  run = over_images(predictions(model), batch_size, mesh)
  key = jax.random.key(0)  # unused
  return lambda weights, images: run(weights, key, images)


def progress(items: Iterable, unit: str) -> Iterable:
  """Iterate over items; on a terminal, with a bar if it takes seconds."""
  return tqdm.tqdm(
    items,
    unit=unit,
    file=sys.stderr,
    disable=not sys.stderr.isatty(),
    dynamic_ncols=True,
    delay=3,
  )


def map_in_chunks(
  call: Callable[[jax.Array, slice], Any], key: jax.Array, total: int
) -> Any:
  """Call a function for one stretch of rows after the other, with progress.

  Args:
    call: `(key, rows) -> tree of arrays` with as many rows.
    key: each stretch has a key of its own.
    total: rows in all, at least 1.

  Returns:
    The tree of arrays of `total` rows, on the host.
  """
  starts = range(0, total, _CHUNK)
  chunks = [
    jax.device_get(
      call(
        jax.random.fold_in(key, number),
        slice(start, min(start + _CHUNK, total)),
      )
    )
    for number, start in enumerate(progress(starts, f"x{_CHUNK} images"))
  ]
  return jax.tree.map(lambda *parts: np.concatenate(parts), *chunks)
