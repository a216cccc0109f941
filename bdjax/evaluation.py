"""Predictions over a test set, clean and triggered.

The only file that meets test images with triggers on them.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bdjax import compiler, sharding
from bdjax.attacks.poison import Attack, draw_triggers
from bdjax.attacks.triggers import stamp
from bdjax.models.base import Model


def _batched(one_batch, images, batch_size, mesh):
  """Maps `one_batch(index, images)` over batches; [N,...] to int32 [N].

  The last batch is filled up with the last image, and the surplus cut off.
  """
  total = images.shape[0]
  count = -(-total // batch_size)
  rows = jnp.minimum(jnp.arange(count * batch_size), total - 1)
  cut = sharding.along_batch(mesh)

  def body(args):
    index, rows = args
    rows = jax.lax.with_sharding_constraint(rows, cut)
    return one_batch(index, images[rows].astype(jnp.float32) / 255.0)

  batches = (jnp.arange(count), rows.reshape(count, batch_size))
  return jax.lax.map(body, batches).reshape(-1)[:total]


def make_predict(model: Model, batch_size: int, mesh) -> Callable:
  """Compiles the classification of a set of images.

  Returns:
    `(params, batch_stats, images u8 [N,H,W,C]) -> int32 [N]`.
  """

  def predict(params, batch_stats, images):
    def one_batch(index, batch):
      del index
      logits, _ = model.apply(params, batch_stats, batch, False)
      return logits.argmax(-1).astype(jnp.int32)

    return _batched(one_batch, images, batch_size, mesh)

  return compiler.jit(predict)


def make_predict_triggered(
  model: Model, attack: Attack, batch_size: int, mesh
) -> Callable:
  """Compiles the classification of a set of images, each freshly triggered.

  Returns:
    `(params, batch_stats, generator_params, key, images u8 [N,H,W,C], index)
    -> int32 [N]`, with every image triggered towards
    `attack.targets[index]`.
  """

  def predict(params, batch_stats, generator_params, key, images, index):
    def one_batch(number, batch):
      batch_key = jax.random.fold_in(key, number)
      wanted = jnp.full(batch.shape[:1], index, jnp.int32)
      drawn = draw_triggers(
        attack, generator_params, batch_key, wanted, batch.shape[1:3]
      )
      logits, _ = model.apply(params, batch_stats, stamp(drawn, batch), False)
      return logits.argmax(-1).astype(jnp.int32)

    return _batched(one_batch, images, batch_size, mesh)

  return compiler.jit(predict)


def triggered_predictions(
  predict: Callable,
  params: Any,
  batch_stats: Any,
  generator_params: Any,
  key: jax.Array,
  images: jax.Array,
  num_targets: int,
  draws: int,
) -> np.ndarray:
  """Predictions for every draw, target and image.

  Args:
    predict: from `make_predict_triggered`.
    params: of the classifier.
    batch_stats: of the classifier.
    generator_params: of the attack's generator.
    key: of the evaluation; no draw was seen in training.
    images: uint8 [N,H,W,C] on the device.
    num_targets: T.
    draws: D, triggers an image and target.

  Returns:
    int32 [D,T,N] on the host.
  """
  keys = jax.random.split(key, (draws, num_targets))
  out = [
    [
      np.asarray(
        predict(params, batch_stats, generator_params, k, images, jnp.int32(i))
      )
      for i, k in enumerate(row)
    ]
    for row in keys
  ]
  return np.array(out)


def sample_triggered(
  attack: Attack,
  generator_params: Any,
  key: jax.Array,
  images: jax.Array,
  index: jax.Array,
) -> jax.Array:
  """Triggered copies of a few images, for a look at them.

  Args:
    attack: the attack.
    generator_params: of its generator.
    key: a random key.
    images: float32 [B,H,W,C] in [0,1].
    index: int32 [B] into `attack.targets`.

  Returns:
    float32 [B,H,W,C].
  """
  drawn = draw_triggers(attack, generator_params, key, index, images.shape[1:3])
  return stamp(drawn, images)
