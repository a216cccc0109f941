"""What the tests of training share: a tiny data set and a tiny setup."""

import functools

import jax
import jax.numpy as jnp
import optax

from bdjax import models, optimization, sharding, training
from bdjax.attacks import BanSettings, ban
from bdjax.batch import Batch
from bdjax.batching import to_float

KEY = jax.random.key(3)
SHAPE = (8, 8, 1)


def make_data() -> Batch:
  """Return 64 images of noise; the label says which half is brighter."""
  images = jax.random.randint(KEY, (64, *SHAPE), 0, 256).astype(jnp.uint8)
  halves = images.astype(jnp.float32).reshape(64, 8, 2, 4).mean((1, 3))
  labels = halves.argmax(1).astype(jnp.int32)
  return Batch(images, labels, jnp.zeros(64, jnp.int8))


def first(data, count=16) -> Batch:
  """Return the first images as a step gets them."""
  images, labels, roles = (x[:count] for x in data)
  return Batch(to_float(images), labels, roles)


@functools.cache
def make_parts(name="cnn"):
  """Return a network, BaN's attack for it and optimisers of both."""
  model = models.get(name, image_shape=SHAPE, num_classes=2, width=4)
  settings = BanSettings(trigger_size=2, noise_dim=3, generator_width=4)
  attack = ban(settings.filled("digits"), SHAPE, 2)
  optimizers = training.Optimizers(
    optimization.sgd(0.1, 0.9, 1e-3), optax.adam(1e-2)
  )
  return model, attack, optimizers


@functools.cache  # what is compiled for one test serves the others
def setup(name="cnn", devices=1, batch=16, rate=0.5):
  """Return step, call, initial carry, mesh and (steps a call, calls)."""
  model, attack, optimizers = make_parts(name)
  step = training.make_train_step(
    model, optimizers, training.poisoning(attack, None, rate)
  )
  mesh = sharding.make_mesh(jax.devices()[:devices])
  cut = training.steps_per_call(64, batch)
  call = training.compile_steps(step, batch, cut[0], mesh)
  make = jax.jit(lambda: training.init(KEY, model, attack.init, optimizers))
  return (
    jax.jit(step),
    call,
    lambda: sharding.replicate(mesh, make()),
    mesh,
    cut,
  )
