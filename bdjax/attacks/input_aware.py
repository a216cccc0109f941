"""Input-Aware Dynamic backdoor, IAD (Tuan Anh Nguyen and Anh Tran 2020)."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from bdjax import compiler
from bdjax.attacks.base import (
  Attack,
  AttackMethod,
  JointPoison,
  TriggerVariables,
  attack_setting,
)
from bdjax.attacks.patches import Trigger, stamp
from bdjax.attacks.settings import AttackSettings, targets_and_sources
from bdjax.batching import to_float
from bdjax.errors import UserError
from bdjax.models.base import ImageNetwork
from bdjax.models.encoder_decoder import encoder_decoder

_BETAS = {"b1": 0.5, "b2": 0.9}


@dataclasses.dataclass(frozen=True)
class InputAwareSettings(AttackSettings):
  """Settings of the Input-Aware attack."""

  cover_rate: float = attack_setting(
    0.1, "Share of the images with another image's trigger.", low=0, high=1
  )
  generator_learning_rate: float = attack_setting(
    0.01, "Learning rate of Adam for generator and mask network.", above=0
  )
  diversity_weight: float = attack_setting(
    1.0, "Weight of the diversity loss.", low=0
  )
  mask_epochs: int | None = attack_setting(
    None,
    "Epochs of the mask network's training before the attack's (default: "
    "CIFAR-10 25, as the authors; digits 10, else 2).",
    low=0,
  )
  mask_density: float = attack_setting(
    0.032, "Share of the image that masks may cover.", low=0, high=1
  )
  mask_weight: float = attack_setting(
    100.0, "Weight of what masks cover beyond their density.", low=0
  )

  def defaults(self, dataset):
    """Return what settings that are None stand for, for a data set."""
    epochs = {"cifar10": 25, "digits": 10}.get(dataset, 2)
    return super().defaults(dataset) | {"mask_epochs": epochs}


class _Networks(NamedTuple):
  """Pattern generator and mask network, and what they make of images.

  Their variables: params are the generator's; the state holds its batch
  statistics, `pattern`, and the mask network's weights, `mask`.
  """

  pattern: ImageNetwork
  mask: ImageNetwork

  def init(self, key: jax.Array) -> TriggerVariables:
    """Initialise both networks."""
    pattern_key, mask_key = jax.random.split(key)
    params, batch_stats = self.pattern.init(pattern_key)
    state = {"pattern": batch_stats, "mask": self.mask.init(mask_key)}
    return TriggerVariables(params, state)

  def masks(self, params, batch_stats, images, train=False):
    """Return masks in [0,1] and the next batch statistics."""
    out, stats = self.mask.apply(params, batch_stats, images, train=train)
    soft = 0.5 + jnp.tanh(out) / 2
    # The authors' threshold, a steep sigmoid around a half.
    return 0.5 + jnp.tanh(20 * soft - 10) / (2 + 1e-7), stats

  def triggers(self, variables, images, train=False):
    """Return the triggers of images and the next state."""
    params, state = variables
    out, stats = self.pattern.apply(
      params, state["pattern"], images, train=train
    )
    pattern = 0.5 + jnp.tanh(out) / 2
    trigger = Trigger(self.masks(*state["mask"], images)[0], pattern)
    return trigger, {**state, "pattern": stats}


def _rms(difference):
  return jnp.sqrt(jnp.square(difference).mean((1, 2, 3)) + 1e-12)


def diversity_loss(images, others, first, second) -> jax.Array:
  """Compute the mean of ||x - x'|| / ||g(x) - g(x')|| (equation 5).

  Args:
    images: x, float32 [B,H,W,C].
    others: x', likewise.
    first: g(x), float32 [B,...].
    second: g(x'), likewise.
  """
  return (_rms(images - others) / (_rms(first - second) + 1e-7)).mean()


def input_aware(
  settings: InputAwareSettings,
  image_shape: tuple[int, int, int],
  num_classes: int,
) -> Attack:
  """Stamp a trigger that a network makes for each image, and for it alone.

  B(x, g(x')) = x + (p(x') - x) m(x') with pattern p and mask m. Poisoned rows
  carry their own trigger g(x); covers keep their label under the trigger of
  another image of the batch (cross-trigger). The mask network is trained
  first, for sparse and diverse masks, and then held; pattern generator and
  classifier are trained together, with `diversity_loss` between the poisoned
  rows and the cross partners.

  The released code never sets the generator's gradient to zero between steps;
  here it is the gradient of the step. Its learning rates fall by steps, here
  that of the generator stays. Images are in [0,1] for the networks too.

  Args:
    settings: filled.
    image_shape: (H, W, C).
    num_classes: K.

  Raises:
    UserError: several targets without all-to-all, which one unconditional
      generator cannot tell apart; or images too small for the networks.

  References:
    Nguyen and Tran (2020), Input-Aware Dynamic Backdoor Attack, section 4.
  """
  targets, sources = targets_and_sources(settings, num_classes)
  if len(targets) > 1 and sources is None:
    raise UserError(
      "target_labels must be one label for input_aware, or all with all_to_all "
      f"(got {settings.target_labels})"
    )
  widths = (16, 32) if image_shape[2] == 1 else (32, 64, 128)
  least = 2 ** len(widths)
  if min(image_shape[:2]) < least:
    raise UserError(
      f"images must be at least {least}x{least} for input_aware (got "
      f"{image_shape[0]}x{image_shape[1]})"
    )
  nets = _Networks(
    encoder_decoder(image_shape, image_shape[2], widths),
    encoder_decoder(image_shape, 1, widths),
  )

  def draw_trigger(variables, key, images, index):
    del key, index
    return nets.triggers(variables, images)[0]

  def apply(variables, key, images, index):
    return stamp(draw_trigger(variables, key, images, index), images)

  def cover(variables, key, images, index):
    partners = jnp.roll(images, 1, 0)
    return stamp(draw_trigger(variables, key, partners, index), images)

  return Attack(
    targets=jnp.asarray(targets, jnp.int32),
    apply=apply,
    init=nets.init,
    sources=sources,
    cover=cover,
    cover_rate=settings.cover_rate,
    joint=_joint(nets, settings),
    optimizer=lambda steps: optax.adam(
      settings.generator_learning_rate, **_BETAS
    ),
    prepare=_mask_stage(nets, settings),
    draw_trigger=draw_trigger,
  )


def _joint(nets, settings):
  """Return `Attack.joint`: own triggers, crossed ones, and their diversity."""

  def joint(variables, key, images, index, rows, cover_rows, classify):
    del index, classify
    shift = jax.random.randint(key, (), 1, images.shape[0])
    own, crossed = images[rows], images[cover_rows]
    partners = images[(cover_rows + shift) % images.shape[0]]
    seen = jnp.concatenate([own, partners])
    triggers, state = nets.triggers(variables, seen, train=True)
    num, pairs = len(rows), min(len(rows), len(cover_rows))
    first = jax.tree.map(lambda x: x[:num], triggers)
    second = jax.tree.map(lambda x: x[num:], triggers)
    loss = jnp.zeros(())
    if pairs:
      loss = settings.diversity_weight * diversity_loss(
        own[:pairs],
        partners[:pairs],
        first.pattern[:pairs],
        second.pattern[:pairs],
      )
    return JointPoison(stamp(first, own), stamp(second, crossed), state, loss)

  return joint


def _mask_stage(nets, settings, batch_size=128):
  """Return the training of the mask network, `Attack.prepare`."""

  def loss_fn(params, batch_stats, images):
    others = jnp.roll(images, 1, 0)
    masks, batch_stats = nets.masks(params, batch_stats, images, train=True)
    beyond = jax.nn.relu(masks - settings.mask_density).mean()
    diversity = diversity_loss(images, others, masks, jnp.roll(masks, 1, 0))
    loss = settings.mask_weight * beyond
    return loss + settings.diversity_weight * diversity, batch_stats

  def prepare(key, variables, context):
    total = len(context.labels)
    size = min(batch_size, total)
    steps = total // size
    rates = optax.piecewise_constant_schedule(
      settings.generator_learning_rate, {10 * steps: 0.1, 20 * steps: 0.1}
    )
    optimizer = optax.adam(rates, **_BETAS)

    @compiler.jit
    def epoch(carry, key, images):
      def step(carry, rows):
        (params, batch_stats), opt_state = carry
        grads, batch_stats = jax.grad(loss_fn, has_aux=True)(
          params, batch_stats, to_float(images[rows])
        )
        with jax.numpy_dtype_promotion("standard"):
          updates, opt_state = optimizer.update(grads, opt_state)
        params = optax.apply_updates(params, updates)
        return ((params, batch_stats), opt_state), None

      order = jax.random.permutation(key, total)[: steps * size]
      return jax.lax.scan(step, carry, order.reshape(steps, size))[0]

    mask = variables.state["mask"]
    carry = mask, optimizer.init(mask[0])
    for number in range(settings.mask_epochs):
      key_now = jax.random.fold_in(key, number)
      carry = epoch(carry, key_now, context.images)
    return variables._replace(state={**variables.state, "mask": carry[0]})

  return prepare


METHOD = AttackMethod(
  "input_aware",
  InputAwareSettings,
  input_aware,
  "Nguyen and Tran 2020, Input-Aware Dynamic Backdoor Attack",
  modes=("batch",),
)
