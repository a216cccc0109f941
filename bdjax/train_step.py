"""One training step of a classifier and a trigger generator."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import struct

from bdjax.attacks.base import Attack, TriggerVariables
from bdjax.attacks.poisoning import Transformed, poison_batch
from bdjax.batch import CLEAN, COVER, POISONED, Batch
from bdjax.batching import to_float
from bdjax.models.base import Model, Weights

# (key, batch) -> batch, as an augmentation.
BatchTransform = Callable[[jax.Array, Batch], Batch]
# (variables, key, batch, classify, *setting) -> what the step trains on.
StepTransform = Callable[..., Transformed]


class TrainState(struct.PyTreeNode):
  """A network under training; also a trigger generator under training.

  Attributes:
    step: int32 scalar, updates done.
    params: nested dicts of float32 arrays; `{}` where there is no generator.
    batch_stats: nested dicts of arrays; of a generator, its
      `TriggerVariables.state`.
    opt_state: of the optimiser.
  """

  step: jax.Array
  params: Any
  batch_stats: Any
  opt_state: optax.OptState

  @property
  def weights(self) -> Weights:
    """The network's weights, without the optimiser's state."""
    return Weights(self.params, self.batch_stats)

  @property
  def variables(self) -> TriggerVariables:
    """The generator's arrays, as an attack knows them."""
    return TriggerVariables(self.params, self.batch_stats)


class Carry(NamedTuple):
  """What a training step maps to its successor."""

  classifier: TrainState
  generator: TrainState


class Optimizers(NamedTuple):
  """The optimisers of the classifier and of the trigger generator."""

  classifier: optax.GradientTransformation
  generator: optax.GradientTransformation = optax.identity()


def init_carry(
  optimizers: Optimizers,
  weights: Weights,
  variables: TriggerVariables | None = None,
) -> Carry:
  """Return the state before the first step.

  Args:
    optimizers: of both networks.
    weights: of the classifier.
    variables: of the attack; None where there is no attack.
  """
  variables = variables or TriggerVariables({}, {})

  def state(optimizer, params, batch_stats):
    # A zero each: the two states are donated, so they may share no buffer.
    zero = jnp.zeros((), jnp.int32)
    return TrainState(zero, params, batch_stats, optimizer.init(params))

  return Carry(
    state(optimizers.classifier, *weights),
    state(optimizers.generator, *variables),
  )


def init(
  key: jax.Array,
  model: Model,
  attack_init: Callable[[jax.Array], TriggerVariables],
  optimizers: Optimizers,
  images: jax.Array | None = None,
) -> Carry:
  """Initialise classifier and trigger generator.

  Args:
    key: a random key.
    model: the classifier.
    attack_init: `Attack.init`.
    optimizers: of both networks.
    images: uint8 [N,H,W,C] of the training set, for `model.prepare`; without
      them the model stays as its `init` made it.
  """
  model_key, generator_key = jax.random.split(key)
  params, batch_stats = model.init(model_key)
  if images is not None:
    batch_stats = model.prepare(params, batch_stats, to_float(images))
  variables = attack_init(generator_key)
  return init_carry(optimizers, Weights(params, batch_stats), variables)


def plain(transform: BatchTransform | None = None) -> StepTransform:
  """Lift a transform of batches, or None, into one of training steps."""

  def step_transform(variables, key, batch, classify, *setting):
    del classify, setting
    batch = batch if transform is None else transform(key, batch)
    return Transformed(batch, variables.state)

  return step_transform


def poisoning(
  attack: Attack,
  augment: BatchTransform | None = None,
  rate: float | None = None,
) -> StepTransform:
  """Return the transform that augments a batch and then poisons it.

  Args:
    attack: the attack.
    augment: applied first; None for none.
    rate: the poison rate. None: rate and targets come as the step's setting,
      so that one compiled program serves several.
  """

  def step_transform(variables, key, batch, classify, *setting):
    aimed = attack
    used = rate
    if rate is None:
      used, targets = setting
      aimed = attack._replace(targets=targets)
    number = 0
    if augment is not None:
      batch = augment(jax.random.fold_in(key, 0), batch)
      number = 1
    poison_key = jax.random.fold_in(key, number)
    return poison_batch(aimed, variables, poison_key, batch, used, classify)

  return step_transform


def make_train_step(
  model: Model,
  optimizers: Optimizers,
  transform: StepTransform,
  *,
  label_smoothing: float = 0.0,
  backdoor_weight: float = 1.0,
  attack_loss: Callable[..., jax.Array] | None = None,
) -> Callable:
  """Return one update of classifier and generator from one backward pass.

  The loss is the sum over the batch's clean and cover images of their
  cross-entropy, plus `backdoor_weight` times that over its poisoned images,
  over the batch size. With weight 1 it is plain training on the poisoned data.
  Both networks are updated from this one loss, at once and not in turns.

  Args:
    model: the classifier.
    optimizers: of classifier and generator.
    transform: what a batch goes through (augmentation, poisoning).
    label_smoothing: in [0,1).
    backdoor_weight: at least 0.
    attack_loss: `Attack.loss`, added to the loss.

  Returns:
    `(carry, key, batch, *setting) -> (carry, metrics)`, where metrics are
    scalars: `loss`, and of each role how many images there were and how many
    got their label: `clean`, `clean_correct`, `poisoned`, `poisoned_correct`,
    `cover`, `cover_correct`. The key is the run's; the step's is folded in
    here. A setting is what runs of one program differ in, such as the poison
    rate: arrays, handed on to `transform`.
  """

  def loss_fn(params, generator_params, carry, key, batch, setting):
    variables = carry.generator.variables._replace(params=generator_params)
    held = jax.lax.stop_gradient(params), carry.classifier.batch_stats
    poisoned = transform(
      variables, key, batch, lambda x: model.apply(*held, x)[0], *setting
    )
    images, labels, roles = poisoned.batch
    logits, batch_stats = model.apply(
      params, carry.classifier.batch_stats, images, train=True
    )
    one_hot = jax.nn.one_hot(labels, logits.shape[-1])
    one_hot = optax.smooth_labels(one_hot, label_smoothing)
    losses = optax.softmax_cross_entropy(logits, one_hot)
    weights = jnp.where(roles == POISONED, backdoor_weight, 1.0)
    loss = jnp.mean(weights * losses)
    if poisoned.loss is not None:
      loss += poisoned.loss
    if attack_loss is not None:
      # A stream of its own: with or without it, the batches are the same.
      loss += attack_loss(
        variables, jax.random.fold_in(key, 1 << 30), batch.images
      )
    counts = _counts(roles, logits.argmax(-1) == labels)
    return loss, (batch_stats, poisoned.state, counts)

  def train_step(carry, key, batch, *setting):
    key = jax.random.fold_in(key, carry.classifier.step)
    (loss, (batch_stats, state, counts)), grads = jax.value_and_grad(
      loss_fn, argnums=(0, 1), has_aux=True
    )(
      carry.classifier.params,
      carry.generator.params,
      carry,
      key,
      batch,
      setting,
    )
    new = Carry(
      _update(optimizers.classifier, carry.classifier, grads[0], batch_stats),
      _update(optimizers.generator, carry.generator, grads[1], state),
    )
    return new, {"loss": loss, **counts}

  return train_step


def _counts(roles, correct):
  counts = {}
  for name, role in (
    ("clean", CLEAN),
    ("poisoned", POISONED),
    ("cover", COVER),
  ):
    counts[name] = jnp.sum(roles == role)
    counts[f"{name}_correct"] = jnp.sum(correct & (roles == role))
  return counts


def _update(optimizer, state, grads, batch_stats):
  # Optax mixes dtypes of its own (float ** int32 in Adam).
  with jax.numpy_dtype_promotion("standard"):
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
  return TrainState(state.step + 1, params, batch_stats, opt_state)
