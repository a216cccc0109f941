import jax
import jax.numpy as jnp
import pytest

from bdjax import models, sharding
from bdjax.defenses.base import Defender
from bdjax.defenses.tuning import compile_tuning
from bdjax.models import Weights

KEY = jax.random.key(17)
SHAPE = (8, 8, 1)


@pytest.fixture(scope="session")
def defender():
  """A network trained on 64 images of four classes, which are its defender's.

  Noise, and brighter in the quadrant that the label names.
  """
  labels = jnp.arange(64, dtype=jnp.int32) % 4
  brighter = jax.nn.one_hot(labels, 4, dtype=jnp.int32).reshape(64, 2, 2)
  brighter = brighter.repeat(4, axis=1).repeat(4, axis=2)[..., None]
  images = jax.random.randint(KEY, (64, *SHAPE), 0, 200)
  images = (images + 55 * brighter).astype(jnp.uint8)
  mesh = sharding.make_mesh(jax.devices()[:1])
  model = models.get("cnn", image_shape=SHAPE, num_classes=4, width=16)
  weights = Weights(*jax.jit(model.init)(KEY))
  train = compile_tuning(model, 16, mesh, epochs=30, learning_rate=0.05)
  weights, _ = train(KEY, weights, images, labels)
  names = tuple("abcd")
  return Defender(model, weights, images, labels, names, mesh, KEY)
