"""Fine-tuning on the defender's data, of what pruning or reversing found.

It is training as any other (`bdjax.training`), only short, on a few images
and from given weights. So batch normalisation normalises by the batch while
tuning, and its running averages move on to the defender's data: the averages
of a backdoored network include the triggered images that it was trained on.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from bdjax import compiler, optimization, sharding, training
from bdjax.attacks.poison import Transform, compose
from bdjax.attacks.triggers import Trigger, stamp
from bdjax.errors import UserError
from bdjax.models import Model, Weights


def no_transform(trigger: Any) -> Transform:
  """Leaves batches as they are."""
  del trigger
  return compose()


def unlearn(triggers: Trigger, rate: float = 0.2) -> Transform:
  """Stamps a share of a batch and keeps the labels.

  Unlearning of a reversed trigger (Wang et al. 2019, Neural Cleanse, section
  6.2: fine-tuning for one epoch on a tenth of the training data, with the
  trigger on 20% of it and the labels unmodified).

  Args:
    triggers: mask float32 [H,W,1] and pattern [H,W,C], or with a leading axis
      [T,...] where several labels were flagged; each stamped image gets one
      of them.
    rate: the probability that an image is stamped, in [0,1].

  Returns:
    The transform. It marks stamped images as poisoned, so that the counts of
    a training step tell them apart; their labels are the true ones.
  """
  triggers = jax.tree.map(lambda x: x.reshape(-1, *x.shape[-3:]), triggers)

  def transform(key, images, labels):
    which, one = jax.random.split(key)
    stamped = jax.random.bernoulli(which, rate, labels.shape)
    index = jax.random.randint(one, labels.shape, 0, triggers.mask.shape[0])
    drawn = jax.tree.map(lambda x: x[index], triggers)
    images = jnp.where(
      stamped[:, None, None, None], stamp(drawn, images), images
    )
    return images, labels, stamped

  return transform


def only(mask: Any) -> optax.GradientTransformation:
  """Lets updates through where a tree of bools says so.

  Last in a chain it holds the rest exactly where it is: no gradient, no
  momentum and no weight decay comes by it.

  Args:
    mask: the tree of the parameters, of bools of their shapes or scalars.
  """

  def let_through(updates, params):
    del params
    return jax.tree.map(
      lambda m, u: jnp.where(m, u, jnp.zeros_like(u)), mask, updates
    )

  return optax.stateless(let_through)


def make_tune(
  model: Model,
  batch_size: int,
  mesh: jax.sharding.Mesh,
  *,
  epochs: int,
  learning_rate: float,
  schedule: str = "constant",
  momentum: float = 0.9,
  weight_decay: float = 0.0,
  transform: Callable[[Any], Transform] = no_transform,
) -> Callable:
  """Compiles fine-tuning, all of it into one program.

  Args:
    model: the classifier; also one from `pruning.masked`, whose pruned
      channels stay pruned.
    batch_size: over all devices.
    mesh: where a batch is cut along.
    epochs: passes over the data, each in an order of its own; what fills no
      batch is left out of a pass.
    learning_rate: the highest.
    schedule: from `optimization.schedule`.
    momentum: Nesterov's.
    weight_decay: on kernels.
    transform: trigger -> the transform that a batch goes through, as
      `unlearn`. The trigger is data, so that another one compiles nothing.

  Returns:
    `(key, weights, images u8 [N,H,W,C], labels i32 [N], mask=None,
    trigger=None) -> (weights, metrics)`. Where `mask`, a tree of bools like
    the params, is False, parameters stay exactly as they are. Metrics are
    those of `training.make_train_step`, each [steps].
  """
  cut = sharding.along_batch(mesh)

  def tune(key, weights, images, labels, mask=None, trigger=None):
    order_key, step_key = jax.random.split(key)
    rows = _batches(order_key, labels.shape[0], batch_size, epochs)
    rate = optimization.schedule(schedule, learning_rate, rows.shape[0])
    optimizer = optimization.sgd(rate, momentum, weight_decay)
    if mask is not None:
      optimizer = optax.chain(optimizer, only(mask))
    optimizers = training.Optimizers(optimizer, optax.identity())
    train_step = training.make_train_step(
      model, optimizers, lambda _: transform(trigger)
    )

    def body(carry, rows):
      rows = jax.lax.with_sharding_constraint(rows, cut)
      batch = images[rows].astype(jnp.float32) / 255.0
      return train_step(carry, step_key, batch, labels[rows])

    carry, metrics = jax.lax.scan(body, _begin(weights, optimizers), rows)
    return Weights(carry.state.params, carry.state.batch_stats), metrics

  return compiler.jit(tune)


def _batches(key, num_images, batch_size, epochs):
  """Row numbers of every step's batch, [S,B]."""
  steps = num_images // batch_size
  if not steps:
    raise UserError(
      f"the defender's {num_images} images fill no batch of {batch_size}; take"
      f" a batch size up to {num_images}"
    )
  keys = jax.random.split(key, epochs)
  orders = jax.vmap(lambda k: jax.random.permutation(k, num_images))(keys)
  return orders[:, : steps * batch_size].reshape(-1, batch_size)


def _begin(weights, optimizers):
  """The state before the first step; there is no trigger generator."""
  zero = jnp.zeros((), jnp.int32)
  return training.Carry(
    training.TrainState(zero, *weights, optimizers.state.init(weights.params)),
    training.TrainState(zero, {}, {}, optimizers.generator.init({})),
  )
