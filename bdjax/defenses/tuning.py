"""Training on the defender's images: fine-tuning, compiled.

It is training as any other (`bdjax.train_step`), only short, on a few images
and from given weights. So batch normalisation normalises by the batch while
tuning, and its running averages move on to the defender's data: the averages of
a backdoored network include the triggered images that it was trained on.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from bdjax import batching, compiler, optimization, sharding
from bdjax.batch import CLEAN, Batch
from bdjax.errors import UserError
from bdjax.models import Model
from bdjax.train_step import (
  BatchTransform,
  Optimizers,
  init_carry,
  make_train_step,
  plain,
)

# Of `bdjax.data.augment`, those that act on a batch alone.
AUGMENTATIONS = ("none", "crop", "crop_flip")


def default_augmentation(image_shape: tuple[int, int, int]) -> str:
  """Return the augmentation that images of a shape are tuned with.

  Args:
    image_shape: (H, W, C).

  Returns:
    One of `AUGMENTATIONS`: `crop_flip` for colour images, `crop` for grey ones
    of 16 pixels and more, which may be digits, else `none`.
  """
  height, width, channels = image_shape
  if channels == 3:
    return "crop_flip"
  return "crop" if min(height, width) >= 16 else "none"


def mask_updates(mask: Any) -> optax.GradientTransformation:
  """Let updates through where a tree of bools says so.

  Last in a chain it holds the other parameters exactly where they are, against
  gradient, momentum and weight decay.

  Args:
    mask: the tree of the parameters, of bools of their shapes or scalars.
  """

  def let_through(updates, params):
    del params
    return jax.tree.map(
      lambda m, u: jnp.where(m, u, jnp.zeros_like(u)), mask, updates
    )

  return optax.stateless(let_through)


def compile_tuning(
  model: Model,
  batch_size: int,
  mesh: jax.sharding.Mesh,
  *,
  epochs: int,
  learning_rate: float,
  schedule: str = "constant",
  momentum: float = 0.9,
  weight_decay: float = 0.0,
  transform: Callable[[Any], BatchTransform] | None = None,
) -> Callable:
  """Compile fine-tuning, all of it into one program.

  Args:
    model: the classifier; also one from `models.masking.masked`, whose pruned
      channels stay pruned.
    batch_size: over all devices.
    mesh: the devices that a batch is divided over.
    epochs: passes over the data, each in an order of its own; the last images
      of a pass, which fill no batch, are left out of it.
    learning_rate: the highest.
    schedule: a name for `optimization.schedule`.
    momentum: Nesterov's.
    weight_decay: on kernels.
    transform: trigger -> what a batch goes through, such as an augmentation or
      unlearning; None leaves batches alone. The trigger is data: another one
      compiles nothing.

  Returns:
    `(key, weights, images u8 [N,H,W,C], labels i32 [N], mask=None,
    trigger=None) -> (weights, metrics)`. Where `mask`, a tree of bools like
    the params, is False, parameters stay exactly as they are. Metrics are
    those of `train_step.make_train_step`, each [steps]. Raises `UserError`
    where N is below the batch size.
  """

  def tune(key, weights, images, labels, mask=None, trigger=None):
    order_key, step_key = jax.random.split(key)
    rows = batch_rows(order_key, labels.shape[0], batch_size, epochs)
    rate = optimization.schedule(schedule, learning_rate, rows.shape[0])
    optimizer = optimization.sgd(rate, momentum, weight_decay)
    if mask is not None:
      optimizer = optax.chain(optimizer, mask_updates(mask))
    optimizers = Optimizers(optimizer)
    change = None if transform is None else transform(trigger)
    train_step = make_train_step(model, optimizers, plain(change))

    def body(carry, rows):
      rows = jax.lax.with_sharding_constraint(rows, sharding.along_batch(mesh))
      roles = jnp.full(rows.shape, CLEAN, jnp.int8)
      batch = Batch(batching.to_float(images[rows]), labels[rows], roles)
      return train_step(carry, step_key, batch)

    carry = init_carry(optimizers, weights)
    carry, metrics = jax.lax.scan(body, carry, rows)
    return carry.classifier.weights, metrics

  return compiler.jit(tune)


def batch_rows(
  key: jax.Array, num_images: int, batch_size: int, epochs: int
) -> jax.Array:
  """Draw the rows of every step's batch, without repetition in an epoch.

  Args:
    key: a random key.
    num_images: N.
    batch_size: B.
    epochs: E.

  Returns:
    int32 [E * (N // B), B], each in [0,N).

  Raises:
    UserError: B is larger than N.
  """
  steps = num_images // batch_size
  if not steps:
    raise UserError(
      f"batch_size must be at most {num_images}, the number of the defender's "
      f"images (got {batch_size})"
    )
  keys = jax.random.split(key, epochs)
  orders = jax.vmap(lambda k: jax.random.permutation(k, num_images))(keys)
  return orders[:, : steps * batch_size].reshape(-1, batch_size)
