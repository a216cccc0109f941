"""What the tests of attacks share: small attacks, and two defined here."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from small_generators import small_networks

from bdjax.attacks import ATTACKS, Attack, AttackMethod, TriggerVariables
from bdjax.attacks.poisoning import poison_batch
from bdjax.attacks.settings import (
  AttackSettings,
  CleanLabelSettings,
  targets_and_sources,
)
from bdjax.batch import Batch

KEY = jax.random.key(7)
SHAPE, CLASSES = (12, 10, 1), 4
# Settings with which a method is small; the others have their defaults.
SMALL = {
  "ban": {"noise_dim": 4, "generator_width": 8},
  "cban": {"noise_dim": 4, "generator_width": 8},
  "input_aware": {"mask_epochs": 1},
}


@dataclasses.dataclass(frozen=True)
class ToyCleanLabelSettings(CleanLabelSettings):
  """Settings of `toy_clean_label`: those of every clean-label attack."""


def toy_clean_label(settings, image_shape, num_classes):
  """Add stripes, stronger at test time, to images of the target class."""
  targets, sources = targets_and_sources(settings, num_classes)
  stripes = jnp.arange(image_shape[1]) % 2 == 0

  def stripe(strength):
    def apply(variables, key, images, index):
      del variables, key, index
      added = strength * stripes.astype(jnp.float32)[None, None, :, None]
      return jnp.clip(images + added, 0.0, 1.0)

    return apply

  return Attack(
    jnp.asarray(targets, jnp.int32),
    stripe(0.1),
    sources=sources,
    clean_label=True,
    apply_test=stripe(0.5),
  )


@dataclasses.dataclass(frozen=True)
class ToyGeneralSettings(AttackSettings):
  """Settings of `toy_general`: those of every attack."""


def toy_general(settings, image_shape, num_classes):
  """Mix with a learnt gray; the last label never moves, 0 is never a cover."""
  targets, sources = targets_and_sources(settings, num_classes)
  targets = jnp.asarray(targets, jnp.int32)
  labels = jnp.arange(num_classes)
  if sources is None:
    moves = (labels < num_classes - 1)[None]
    sources = (targets[:, None] != labels[None]) & moves

  def mix(opacity):
    def apply(variables, key, images, index):
      del key, index
      gray = jax.nn.sigmoid(variables.params["gray"])
      return (1 - opacity) * images + opacity * gray

    return apply

  return Attack(
    targets,
    mix(0.5),
    init=lambda key: TriggerVariables({"gray": jnp.zeros(())}, {}),
    sources=sources,
    apply_test=mix(0.75),
    cover=mix(0.25),
    cover_rate=0.2,
    cover_sources=labels > 0,
  )


def gray(value):
  """Return an `Attack.apply` that paints images in one gray."""

  def apply(variables, key, images, index):
    del variables, key, index
    return jnp.full_like(images, value)

  return apply


NO_VARIABLES = TriggerVariables({}, {})
WHITE = Attack(jnp.array([2]), gray(1.0))
TOYS = {
  "toy_clean_label": AttackMethod(
    "toy_clean_label", ToyCleanLabelSettings, toy_clean_label, "Nobody 2026"
  ),
  "toy_general": AttackMethod(
    "toy_general", ToyGeneralSettings, toy_general, "Nobody 2026"
  ),
}
METHODS = ATTACKS | TOYS


def make(name, dataset="digits", **changes) -> Attack:
  """Make a small attack for images of `SHAPE` and four classes."""
  method = METHODS[name]
  settings = method.settings(**SMALL.get(name, {}) | changes).filled(dataset)
  with small_networks():
    return method.make(settings, SHAPE, CLASSES)


def clean_batch(count=64) -> Batch:
  """Return noise, one black and one white image, and labels in turn."""
  images = np.random.default_rng(0).random((count, *SHAPE), np.float32)
  images[0], images[1] = 0.0, 1.0
  labels = np.arange(count, dtype=np.int32) % CLASSES
  return Batch(images, labels, np.zeros(count, np.int8))


def init(attack) -> TriggerVariables:
  """Return an attack's variables."""
  return jax.jit(attack.init)(KEY)


def compile_poison(attack):
  """Compile `(variables, key, batch, rate) -> Transformed`, on the host."""

  def run(variables, key, batch, rate):
    return poison_batch(attack, variables, key, batch, rate)

  run = jax.jit(run, static_argnums=3 if attack.counts_rows else ())
  return lambda *args: jax.device_get(run(*args))


def labels_and_roles(attack, rate, batch):
  """Poison a batch and return labels and roles; no trigger is computed."""

  @jax.jit
  def run(batch):
    variables = attack.init(KEY)
    return poison_batch(attack, variables, KEY, batch, rate).batch[1:]

  return jax.device_get(run(batch))


def num_targets(attack) -> int:
  """Return T."""
  return attack.targets.shape[0]
