"""Predictions over a test set, clean and triggered.

The only file that meets test images with triggers on them.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bdjax import compiler, sharding
from bdjax.attacks.poison import Attack, draw_triggers, poison
from bdjax.attacks.triggers import stamp
from bdjax.models.base import Model


def _batched(one_batch, arrays, batch_size, mesh):
  """Maps `one_batch(number, *batch)` over batches of arrays [N,...].

  The last batch is filled up with the last row, and the surplus cut off.
  Images come as uint8 and go on as float32 in [0,1].
  """
  total = arrays[0].shape[0]
  count = -(-total // batch_size)
  rows = jnp.minimum(jnp.arange(count * batch_size), total - 1)
  cut = sharding.along_batch(mesh)

  def body(args):
    number, rows = args
    rows = jax.lax.with_sharding_constraint(rows, cut)
    batch = [x[rows] for x in arrays]
    images = batch[0].astype(jnp.float32) / 255.0
    return one_batch(number, images, *batch[1:])

  batches = (jnp.arange(count), rows.reshape(count, batch_size))
  out = jax.lax.map(body, batches)
  return jax.tree.map(
    lambda x: x.reshape(count * batch_size, *x.shape[2:])[:total], out
  )


def over_images(
  function: Callable[[Any, jax.Array, jax.Array], Any], batch_size: int, mesh
) -> Callable:
  """Compiles a function of a batch for a whole set of images.

  Args:
    function: `(args, key, images f32 [B,H,W,C]) -> tree of [B,...]`.
    batch_size: B.
    mesh: where a batch is cut along.

  Returns:
    `(args, key, images u8 [N,H,W,C]) -> tree of [N,...]`; every batch has a
    key of its own.
  """

  def run(args, key, images):
    def one_batch(number, batch):
      return function(args, jax.random.fold_in(key, number), batch)

    return _batched(one_batch, (images,), batch_size, mesh)

  return compiler.jit(run)


def over_triggered(
  function: Callable[[Any, jax.Array, jax.Array], Any],
  attack: Attack,
  batch_size: int,
  mesh,
) -> Callable:
  """The same with a fresh trigger on each image.

  Args:
    function: as for `over_images`.
    attack: its target is drawn for each image from those that it may have.
    batch_size: B.
    mesh: where a batch is cut along.

  Returns:
    `(args, generator_params, key, images u8 [N,H,W,C], labels i32 [N]) ->
    (tree of [N,...], targets i32 [N], counts bool [N])`; images that do not
    count may have no target and are not triggered.
  """

  def run(args, generator_params, key, images, labels):
    trigger_key, function_key = jax.random.split(key)

    def one_batch(number, batch, labels):
      transform = poison(attack, generator_params, 1.0)
      batch, targets, counts = transform(
        jax.random.fold_in(trigger_key, number), batch, labels
      )
      out = function(args, jax.random.fold_in(function_key, number), batch)
      return out, targets, counts

    return _batched(one_batch, (images, labels), batch_size, mesh)

  return compiler.jit(run)


def make_predict(model: Model, batch_size: int, mesh) -> Callable:
  """Compiles the classification of a set of images.

  Returns:
    `(params, batch_stats, images u8 [N,H,W,C]) -> int32 [N]`.
  """

  def predict(params, batch_stats, images):
    def one_batch(number, batch):
      del number
      logits, _ = model.apply(params, batch_stats, batch, False)
      return logits.argmax(-1).astype(jnp.int32)

    return _batched(one_batch, (images,), batch_size, mesh)

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

    return _batched(one_batch, (images,), batch_size, mesh)

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
