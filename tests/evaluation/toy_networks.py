"""Networks whose answers are known, and attacks that they can see."""

import jax
import jax.numpy as jnp
import numpy as np

from bdjax import sharding
from bdjax.attacks import Attack
from bdjax.data import Dataset
from bdjax.evaluation import HeldOutEvaluator, Original
from bdjax.models import Model, Weights

KEY = jax.random.key(5)
CLASSES = 4


def gray_network() -> Model:
  """Return a network that reads the label off an image's gray.

  Images of gray 10 k are of label k. What is brighter than 200 has a trigger:
  it is of the label `params["backdoor"]`, or, where that is -1, of the label
  that its second pixel names.
  """

  def apply(params, batch_stats, images, *, train=False, tap=None):
    del train, tap
    gray = jnp.round(images[:, 0, 0, 0] * 255)
    own = jnp.round(images[:, 0, 1, 0] * 25.5).astype(jnp.int32)
    label = jnp.where(gray > 200, params["backdoor"], jnp.round(gray / 10))
    label = jnp.where(label < 0, own.astype(jnp.float32), label)
    label = jnp.where(own == params["blind"], 0.0, label).astype(jnp.int32)
    return jax.nn.one_hot(label, CLASSES), batch_stats

  def init(key):
    del key
    return {"backdoor": jnp.float32(-1), "blind": jnp.int32(-1)}, {}

  return Model(init, apply, None, None)


def weights(backdoor=-1, blind=-1) -> Weights:
  """Return weights of `gray_network`.

  Args:
    backdoor: label of triggered images; -1 for their own.
    blind: label whose images are all taken for 0; -1 for none.
  """
  return Weights(
    {"backdoor": jnp.float32(backdoor), "blind": jnp.int32(blind)}, {}
  )


def gray_images(labels) -> Dataset:
  """Return images of 1x2 pixels that `gray_network` is right about."""
  labels = np.asarray(labels, np.int32)
  gray = (10 * labels).astype(np.uint8)
  return Dataset(np.stack([gray, gray], 1)[:, None, :, None], labels)


def bright(variables, key, images, index):
  """Make the first pixel white, as `Attack.apply`."""
  del variables, key, index
  return images.at[:, 0, 0].set(1.0)


BRIGHT = Attack(jnp.array([2]), bright)
TEST = gray_images([0, 0, 0, 1, 1, 2, 2, 2, 3, 3])
MODEL = gray_network()


def evaluator(attack=BRIGHT, test=TEST, **kwargs) -> HeldOutEvaluator:
  """Return the evaluator of `TEST` and `BRIGHT` on one device."""
  mesh = sharding.make_mesh(jax.devices()[:1])
  return HeldOutEvaluator(test, mesh, KEY, attack=attack, **kwargs)


def original(backdoor=2, roles=None) -> Original:
  """Return the network with a backdoor, before a defence."""
  return Original(MODEL, weights(backdoor), CLASSES, roles)
