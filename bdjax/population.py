"""Training calls of several runs as one program, mapped over the runs."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from bdjax import compiler, sharding


def make_call(
  train_step: Callable, batch_size: int, steps: int, mesh: jax.sharding.Mesh
) -> Callable:
  """Compiles what `training.make_call` does, for several runs at once.

  The step is mapped with `vmap`, so that convolutions whose weights differ from
  run to run become grouped ones. Sums may be taken in another order than in a
  run alone: its numbers are those of the runs up to rounding.

  Args:
    train_step: from `training.make_train_step`.
    batch_size: of each run, over all devices.
    steps: updates a call.
    mesh: where the batches are cut along.

  Returns:
    `(members) -> ((carry, metrics), ...)`, where members is a tuple of the
    arguments that `training.make_call`'s program takes, one a run. Nothing is
    donated.
  """
  cut = sharding.along_batch(mesh)
  count = steps * batch_size

  def run(members):
    carries, keys, images, labels, orders, parts, *settings = zip(
      *members, strict=True
    )
    rows = [
      jax.lax.dynamic_slice(order, (part * count,), (count,))
      for order, part in zip(orders, parts, strict=True)
    ]

    def batches(arrays, rows):  # [M,B,...]; the runs' data are not copied
      rows = [jax.lax.with_sharding_constraint(each, cut) for each in rows]
      return jnp.stack([x[r] for x, r in zip(arrays, rows, strict=True)])

    def body(carry, rows):
      images_now = batches(images, rows).astype(jnp.float32) / 255.0
      return jax.vmap(train_step)(
        carry, jnp.stack(keys), images_now, batches(labels, rows), *settings
      )

    settings = [jnp.stack(each) for each in settings]
    rows = jnp.stack([each.reshape(steps, batch_size) for each in rows], 1)
    carry, metrics = jax.lax.scan(body, _stack(carries), rows)
    metrics = jax.tree.map(lambda x: x.swapaxes(0, 1), metrics)
    out = carry, metrics
    return tuple(
      jax.tree.map(lambda x, i=i: x[i], out) for i in range(len(members))
    )

  return compiler.jit(run)


def _stack(trees):
  return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)
