"""A classifier of bright rows whose smallest triggers are known.

A clean image has one bright row. Class k sees row k, so that a trigger towards
it takes about as many white pixels as a row's brightness sums up to: 4.8, and
more where the class has less weight than its rivals. `BACKDOOR` sees one pixel,
which with 60 hundredths of its weight beats the brightest row. `UNREACHABLE`
never wins.
"""

import jax.numpy as jnp
import numpy as np

from bdjax.models import Model, Weights

SHAPE = (8, 8, 1)
BACKDOOR, UNREACHABLE = 4, 6
_ROW_WEIGHTS = {0: 10, 1: 10.5, 2: 11, 3: 11.5, 5: 12}


def _apply(params, batch_stats, images, *, train=False):
  del train
  flat = images.reshape(images.shape[0], -1)
  return flat @ params["kernel"] + params["bias"][None], batch_stats


def _make_weights():
  kernel = np.zeros((8, 8, 7), np.float32)
  for k, weight in _ROW_WEIGHTS.items():
    kernel[k, :, k] = weight
  kernel[7, 7, BACKDOOR] = 100
  bias = np.zeros(7, np.float32)
  bias[UNREACHABLE] = -1000
  params = {"kernel": kernel.reshape(64, 7), "bias": bias}
  return Weights({k: jnp.asarray(x) for k, x in params.items()}, {})


def _make_images():
  images = np.random.default_rng(0).integers(0, 27, (96, *SHAPE))
  for i, image in enumerate(images):
    image[list(_ROW_WEIGHTS)[i % 5]] += 140
  images[:, 7, 7] = 0
  return jnp.asarray(images, jnp.uint8)


MODEL = Model(init=None, apply=_apply, features=None, head=None)
WEIGHTS = _make_weights()
IMAGES = _make_images()
LABELS = jnp.array([list(_ROW_WEIGHTS)[i % 5] for i in range(96)], jnp.int32)
