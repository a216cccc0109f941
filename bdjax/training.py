"""Training: one jitted call runs many steps over data on the device."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import struct

from bdjax import compiler, sharding
from bdjax.attacks.poison import Transform
from bdjax.models.base import Model


class TrainState(struct.PyTreeNode):
  """A network under training; also a trigger generator under training.

  Attributes:
    step: int32 scalar, updates done.
    params: nested dicts of float32 arrays; `{}` where there is no generator.
    batch_stats: nested dicts of float32 arrays.
    opt_state: of the optimiser.
  """

  step: jax.Array
  params: Any
  batch_stats: Any
  opt_state: optax.OptState


class Carry(NamedTuple):
  """What a training step maps to its successor."""

  state: TrainState
  generator: TrainState


class Optimizers(NamedTuple):
  """One for the classifier, one for the trigger generator."""

  state: optax.GradientTransformation
  generator: optax.GradientTransformation


def create(
  key: jax.Array,
  model: Model,
  generator_init: Callable[[jax.Array], Any],
  optimizers: Optimizers,
  images: jax.Array | None = None,
) -> Carry:
  """Fresh states of the classifier and the generator.

  Args:
    key: a random key.
    model: the classifier.
    generator_init: key -> parameters of the generator.
    optimizers: of both.
    images: uint8 [N,H,W,C] of the training set, for `model.prepare`; without
      them the model stays as its `init` made it.
  """
  model_key, generator_key = jax.random.split(key)
  params, batch_stats = model.init(model_key)
  if images is not None:
    images = images.astype(jnp.float32) / 255.0
    batch_stats = model.prepare(params, batch_stats, images)
  zero = jnp.zeros((), jnp.int32)
  state = TrainState(zero, params, batch_stats, optimizers.state.init(params))
  params = generator_init(generator_key)
  opt_state = optimizers.generator.init(params)
  # A second zero: the two states are donated, so they may share no buffer.
  return Carry(
    state, TrainState(jnp.zeros((), jnp.int32), params, {}, opt_state)
  )


def make_train_step(
  model: Model,
  optimizers: Optimizers,
  transform: Callable[..., Transform],
  *,
  label_smoothing: float = 0.0,
  backdoor_weight: float = 1.0,
  penalty: Callable[[Any, jax.Array], jax.Array] | None = None,
) -> Callable:
  """One update of classifier and generator from one backward pass.

  The loss is the sum over the batch's clean images of their cross-entropy,
  plus `backdoor_weight` times that over its poisoned images, over the batch
  size. With weight 1 it is plain training on the poisoned data. Both networks
  are updated from this one loss, at once and not in turns.

  Args:
    model: the classifier.
    optimizers: of classifier and generator.
    transform: `(generator parameters, *setting) ->` the transform
      (augmentation, poisoning) that a batch goes through.
    label_smoothing: in [0,1).
    backdoor_weight: at least 0.
    penalty: `(generator_params, key) -> scalar`, added to the loss.

  Returns:
    `(carry, key, images f32 [B,H,W,C], labels i32 [B], *setting) -> (carry,
    metrics)`, where metrics are scalars: `loss`, and counts `clean`,
    `clean_correct`, `poisoned`, `poisoned_correct`. The key is the run's; the
    step's is folded in here. A setting is what runs of one program differ in,
    such as the poison rate: arrays, handed on to `transform`.
  """

  def loss_fn(params, generator_params, batch_stats, key, batch, setting):
    apply_to = transform(generator_params, *setting)
    images, labels, poisoned = apply_to(key, *batch)
    logits, batch_stats = model.apply(params, batch_stats, images, True)
    wanted = jax.nn.one_hot(labels, logits.shape[-1])
    wanted = optax.smooth_labels(wanted, label_smoothing)
    losses = optax.softmax_cross_entropy(logits, wanted)
    weights = jnp.where(poisoned, backdoor_weight, 1.0)
    correct = logits.argmax(-1) == labels
    counts = {
      "clean": jnp.sum(~poisoned),
      "clean_correct": jnp.sum(correct & ~poisoned),
      "poisoned": jnp.sum(poisoned),
      "poisoned_correct": jnp.sum(correct & poisoned),
    }
    loss = jnp.mean(weights * losses)
    if penalty is not None:
      # A stream of its own: with or without it, the batches are the same.
      loss += penalty(generator_params, jax.random.fold_in(key, 1 << 30))
    return loss, (batch_stats, counts)

  def train_step(carry, key, images, labels, *setting):
    state, generator = carry
    key = jax.random.fold_in(key, state.step)
    batch = images, labels
    (loss, (batch_stats, counts)), grads = jax.value_and_grad(
      loss_fn, argnums=(0, 1), has_aux=True
    )(state.params, generator.params, state.batch_stats, key, batch, setting)
    state = _update(optimizers.state, state, grads[0])
    generator = _update(optimizers.generator, generator, grads[1])
    state = state.replace(batch_stats=batch_stats)
    return Carry(state, generator), {"loss": loss, **counts}

  return train_step


def _update(optimizer, state, grads):
  # Optax mixes dtypes of its own (float ** int32 in Adam).
  with jax.numpy_dtype_promotion("standard"):
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
  return state.replace(step=state.step + 1, params=params, opt_state=opt_state)


def steps_per_call(num_images: int, batch_size: int) -> tuple[int, int]:
  """How an epoch is cut into calls of equally many steps.

  One program serves all calls, so an epoch is a whole number of calls: of
  16 to 32 steps each, the length that leaves the fewest batches out. What is
  left out (under a call's steps) differs from epoch to epoch, as the order
  does.

  Args:
    num_images: in the training set.
    batch_size: at most `num_images`.

  Returns:
    (steps a call, calls an epoch).
  """
  batches = num_images // batch_size
  if batches <= 32:
    return batches, 1
  steps = max(range(16, 33), key=lambda s: (batches // s * s, s))
  return steps, batches // steps


def make_call(
  train_step: Callable, batch_size: int, steps: int, mesh: jax.sharding.Mesh
) -> Callable:
  """Compiles `steps` updates into one program with donated state.

  Args:
    train_step: from `make_train_step`.
    batch_size: over all devices.
    steps: updates a call.
    mesh: where the batch is cut along; the dataset is on every device.

  Returns:
    `(carry, key, images u8 [N,H,W,C], labels i32 [N], order i32 [N], call,
    *setting) -> (carry, metrics)`: runs the `call`-th stretch of `order`;
    metrics are [steps].
  """
  cut = sharding.along_batch(mesh)

  def run(carry, key, images, labels, order, call, *setting):
    count = steps * batch_size
    rows = jax.lax.dynamic_slice(order, (call * count,), (count,))

    def body(carry, rows):
      rows = jax.lax.with_sharding_constraint(rows, cut)
      batch = images[rows].astype(jnp.float32) / 255.0
      return train_step(carry, key, batch, labels[rows], *setting)

    return jax.lax.scan(body, carry, rows.reshape(steps, batch_size))

  return compiler.jit(run, donate_argnums=0)


def fit(
  call: Callable,
  carry: Carry,
  key: jax.Array,
  images: jax.Array,
  labels: jax.Array,
  *,
  steps: int,
  calls: int,
  epochs: int,
  each_epoch: Callable | None = None,
  setting: tuple[jax.Array, ...] = (),
) -> Iterator[tuple[int, Carry, dict]]:
  """Trains from the carry's step to the end, yielding after every call.

  Randomness depends on key and step alone, so a run that is stopped after a
  yield and gone on with later equals an unbroken one. The yielded carry is
  donated to the next call: copy what is to be kept.

  Args:
    call: from `make_call`.
    carry: its step is a multiple of `steps`.
    key: the run's.
    images: uint8 [N,H,W,C] on the device.
    labels: int32 [N] on the device.
    steps: updates a call.
    calls: calls an epoch.
    epochs: of the whole run.
    each_epoch: `(key, epoch, images) -> images`, what an epoch shows of the
      training set; the key is the same in all of them.
    setting: what `call` takes last.

  Yields:
    (step, carry, metrics [steps]).
  """
  order_key, step_key = jax.random.split(key)

  @jax.jit
  def shuffle(epoch):
    epoch_key = jax.random.fold_in(order_key, epoch)
    return jax.random.permutation(epoch_key, labels.shape[0])

  done = int(carry.state.step) // steps
  show = (
    jax.jit(each_epoch) if each_epoch else lambda key, epoch, images: images
  )
  show_key = jax.random.fold_in(key, 2)  # 0 and 1 are the two above
  order = shown = None
  for index in range(done, epochs * calls):
    epoch, part = divmod(index, calls)
    if order is None or part == 0:
      order = shuffle(jnp.int32(epoch))
      shown = None  # gives the last epoch's memory back first
      shown = show(show_key, jnp.int32(epoch), images)
    carry, metrics = call(carry, step_key, shown, labels, order, part, *setting)
    yield (index + 1) * steps, carry, metrics
