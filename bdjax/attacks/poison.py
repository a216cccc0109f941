"""From an attack to poisoned batches, inside the jitted step."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from bdjax.attacks.triggers import Trigger, draw_corner, place, stamp

# (key, images f32 [B,H,W,C], labels i32 [B]) -> (images, labels,
# poisoned bool [B]).
Transform = Callable[
  [jax.Array, jax.Array, jax.Array], tuple[jax.Array, jax.Array, jax.Array]
]


class Attack(NamedTuple):
  """A backdoor: how the trigger of each image is drawn.

  Attributes:
    targets: int32 [T], the target labels, distinct.
    boxes: int32 [T,L,4], where a trigger for each target may lie: in any of L
      boxes, each drawn as often as the others.
    init: `(key) -> params` of the trigger generator; `{}` if there is none.
    patches: `(params, key, index) -> float32 [B,s,s,C]` in [0,1]: a fresh
      patch for each `index` int32 [B] into `targets`.
    trigger_size: s, in pixels.
    sources: bool [T,K], the true labels that are triggered towards each target;
      None: all but the target itself.
  """

  targets: jax.Array
  boxes: jax.Array
  init: Callable[[jax.Array], Any]
  patches: Callable[[Any, jax.Array, jax.Array], jax.Array]
  trigger_size: int
  sources: jax.Array | None = None

  def eligible(self, labels: jax.Array) -> jax.Array:
    """Which targets an image of true label int32 [B] may have: bool [B,T].

    Never its own label: a triggered image that carries its true label could
    neither be learnt from nor counted as a success.
    """
    other = self.targets[None, :] != labels[:, None]
    return other if self.sources is None else other & self.sources.T[labels]


def draw_triggers(
  attack: Attack, params: Any, key: jax.Array, index: jax.Array, shape: tuple
) -> Trigger:
  """One fresh trigger an image.

  Args:
    attack: the attack.
    params: of its generator.
    key: a random key.
    index: int32 [B] into `attack.targets`, what each image shall become.
    shape: (H, W) of the images.

  Returns:
    Mask float32 [B,H,W,1] and pattern float32 [B,H,W,C].
  """
  patch_key, place_key = jax.random.split(key)
  patches = attack.patches(params, patch_key, index)
  keys = jax.random.split(place_key, index.shape[0])
  corners = jax.vmap(draw_corner, (0, 0, None))(
    keys, attack.boxes[index], attack.trigger_size
  )
  return jax.vmap(lambda p, c: place(p, c, *shape))(patches, corners)


def choose_targets(
  key: jax.Array, eligible: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """Draws each image's target uniformly among those that it may have.

  Args:
    key: a random key.
    eligible: bool [B,T], from `Attack.eligible`.

  Returns:
    index int32 [B] into the targets, and bool [B]: whether there is one.
  """
  scores = jax.random.uniform(key, eligible.shape)
  return jnp.where(eligible, scores, -1.0).argmax(1), eligible.any(1)


def poison(attack: Attack, params: Any, rate: float | jax.Array) -> Transform:
  """Poisons a batch: stamps fresh triggers and changes the labels.

  Each image is poisoned with probability `rate`, towards a target drawn
  uniformly from those that it may have (`Attack.eligible`). An image whose own
  label is the only target stays clean. (With one target of K balanced classes
  the poisoned share of a batch is therefore rate * (K - 1) / K.)

  Args:
    attack: the attack.
    params: of its generator; gradients flow into them.
    rate: the poison rate, in [0,1].

  Returns:
    The transform.
  """

  def transform(key, images, labels):
    which, target, trigger = jax.random.split(key, 3)
    index, any_target = choose_targets(target, attack.eligible(labels))
    poisoned = jax.random.bernoulli(which, rate, labels.shape) & any_target
    drawn = draw_triggers(attack, params, trigger, index, images.shape[1:3])
    triggered = stamp(drawn, images)
    images = jnp.where(poisoned[:, None, None, None], triggered, images)
    return images, jnp.where(poisoned, attack.targets[index], labels), poisoned

  return transform


def compose(*transforms: Transform) -> Transform:
  """One transform after the other; an image is poisoned if any poisoned it.

  With no transform, the identity.
  """

  def transform(key, images, labels):
    poisoned = jnp.zeros(labels.shape, bool)
    for i, each in enumerate(transforms):
      k = jax.random.fold_in(key, i)
      images, labels, now = each(k, images, labels)
      poisoned |= now
    return images, labels, poisoned

  return transform
