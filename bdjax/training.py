"""Training: one jitted call runs many steps over data on the device."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from bdjax import compiler, optimization, sharding
from bdjax.attacks.base import (
  Attack,
  PreparationContext,
  TriggerVariables,
  no_variables,
)
from bdjax.batch import Batch
from bdjax.batching import to_float
from bdjax.errors import UserError
from bdjax.models.base import Model, Weights
from bdjax.train_step import (
  BatchTransform,
  Carry,
  Optimizers,
  TrainState,
  init,
  init_carry,
  make_train_step,
  plain,
  poisoning,
)

__all__ = [
  "Carry",
  "Optimizers",
  "TrainState",
  "Trained",
  "compile_steps",
  "fit",
  "init",
  "init_carry",
  "make_train_step",
  "plain",
  "poisoning",
  "steps_per_call",
  "train",
]


def steps_per_call(num_images: int, batch_size: int) -> tuple[int, int]:
  """Cut an epoch into calls of equally many steps.

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


def compile_steps(
  train_step: Callable, batch_size: int, steps: int, mesh: jax.sharding.Mesh
) -> Callable:
  """Compile `steps` updates into one program with donated state.

  Args:
    train_step: from `make_train_step`.
    batch_size: over all devices.
    steps: updates a call.
    mesh: where the batch is cut along; the dataset is on every device.

  Returns:
    `(carry, key, data, order i32 [N], call, *setting) -> (carry, metrics)`:
    runs the `call`-th stretch of `order`. Data are a `Batch` of the whole set,
    with uint8 images; metrics are [steps].
  """
  cut = sharding.along_batch(mesh)

  def run(carry, key, data, order, call, *setting):
    count = steps * batch_size
    rows = jax.lax.dynamic_slice(order, (call * count,), (count,))

    def body(carry, rows):
      rows = jax.lax.with_sharding_constraint(rows, cut)
      batch = Batch(
        to_float(data.images[rows]), data.labels[rows], data.roles[rows]
      )
      return train_step(carry, key, batch, *setting)

    return jax.lax.scan(body, carry, rows.reshape(steps, batch_size))

  return compiler.jit(run, donate_argnums=0)


def fit(
  call: Callable,
  carry: Carry,
  key: jax.Array,
  data: Batch,
  *,
  steps: int,
  calls: int,
  epochs: int,
  each_epoch: Callable | None = None,
  setting: tuple[jax.Array, ...] = (),
) -> Iterator[tuple[int, Carry, dict]]:
  """Train from the carry's step to the end, yielding after every call.

  Randomness depends on key and step alone, so a run that is stopped after a
  yield and resumed equals an unbroken one. The yielded carry is donated to the
  next call: copy what is to be kept.

  Args:
    call: from `compile_steps`.
    carry: its step is a multiple of `steps`.
    key: the run's.
    data: the whole training set on the device, with uint8 images.
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
  total = data.labels.shape[0]

  @jax.jit
  def shuffle(epoch):
    epoch_key = jax.random.fold_in(order_key, epoch)
    return jax.random.permutation(epoch_key, total)

  done = int(carry.classifier.step) // steps
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
      shown = data._replace(
        images=show(show_key, jnp.int32(epoch), data.images)
      )
    carry, metrics = call(carry, step_key, shown, order, part, *setting)
    yield (index + 1) * steps, carry, metrics


class Trained(NamedTuple):
  """What `train` returns.

  Attributes:
    weights: of the classifier.
    variables: of the attack; empty without one.
    metrics: name -> float [steps], see `make_train_step`.
  """

  weights: Weights
  variables: TriggerVariables
  metrics: dict[str, Any]


def train(
  key: jax.Array,
  model: Model,
  data: Batch,
  *,
  epochs: int,
  batch_size: int,
  optimizer: Callable[[optax.Schedule], optax.GradientTransformation]
  | None = None,
  learning_rate: float = 0.05,
  attack: Attack | None = None,
  poison_rate: float = 0.0,
  augment: BatchTransform | None = None,
) -> Trained:
  """Train a classifier, and with an attack poison its batches.

  The whole training in one call, without checkpoints or progress;
  `bdjax.runs` has a resumable one. For a poisoned data set, pass its images,
  labels and roles as data and no attack.

  Args:
    key: a random key.
    model: the classifier.
    data: the training set, with uint8 images; labels and roles as numbers of
      any integer type.
    epochs: passes over the data.
    batch_size: images a step, over all devices.
    optimizer: learning rate schedule -> optimiser; default SGD with Nesterov
      momentum 0.9 and weight decay 1e-4.
    learning_rate: the highest of a one-cycle schedule.
    attack: poisons each batch anew.
    poison_rate: see `poison_batch`.
    augment: transform of each batch before it is poisoned.

  Returns:
    The trained weights, the attack's variables and the metrics.

  Raises:
    UserError: the batch size does not fit the data or the devices.
  """
  mesh = sharding.make_mesh()
  sharding.check_batch_size(mesh, batch_size)
  total_images = len(data.labels)
  if not 1 <= batch_size <= total_images:
    raise UserError(
      f"batch_size must be from 1 to {total_images}, the number of images (got "
      f"{batch_size})"
    )
  data = sharding.replicate(
    mesh,
    Batch(
      jnp.asarray(data.images),
      jnp.asarray(data.labels, jnp.int32),
      jnp.asarray(data.roles, jnp.int8),
    ),
  )
  init_key, prepare_key, fit_key = jax.random.split(key, 3)
  steps, calls = steps_per_call(total_images, batch_size)
  total = epochs * calls * steps
  rate = optimization.schedule("onecycle", learning_rate, total)
  make = optimizer or (lambda rate: optimization.sgd(rate, 0.9, 1e-4))
  optimizers = Optimizers(
    make(rate), attack.optimizer(total) if attack else optax.identity()
  )
  transform = poisoning(attack, augment, poison_rate) if attack else None
  train_step = make_train_step(
    model,
    optimizers,
    transform or plain(augment),
    attack_loss=attack.loss if attack else None,
  )
  attack_init = attack.init if attack else no_variables

  @jax.jit
  def init_all(key, images):
    return init(key, model, attack_init, optimizers, images)

  carry = sharding.replicate(mesh, init_all(init_key, data.images[:5000]))
  call = compile_steps(train_step, batch_size, steps, mesh)
  metrics = []
  if attack and attack.prepare:
    context = PreparationContext(data.images, data.labels, mesh)
    variables = attack.prepare(prepare_key, carry.generator.variables, context)
    carry = init_carry(optimizers, carry.classifier.weights, variables)
    carry = sharding.replicate(mesh, carry)
  loop = fit(
    call, carry, fit_key, data, steps=steps, calls=calls, epochs=epochs
  )
  for _, latest, logs in loop:
    carry = latest
    metrics.append(logs)
  metrics = jax.tree.map(lambda *x: jnp.concatenate(x), *metrics)
  return Trained(carry.classifier.weights, carry.generator.variables, metrics)
