"""Predictions over a test set, each image freshly triggered."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bdjax import compiler
from bdjax.attacks.base import Attack, TriggerVariables
from bdjax.attacks.poisoning import trigger_all
from bdjax.batching import map_batches
from bdjax.models.base import Model, Weights


def over_triggered(
  function: Callable[[Any, jax.Array, jax.Array], Any],
  attack: Attack,
  batch_size: int,
  mesh: jax.sharding.Mesh,
) -> Callable:
  """Compile a function of a batch for a set of images, freshly triggered.

  Args:
    function: as for `batching.over_images`.
    attack: its target is drawn for each image from those that it may have.
    batch_size: B.
    mesh: where a batch is cut along.

  Returns:
    `(args, variables, key, images u8 [N,H,W,C], labels i32 [N]) -> (tree of
    [N,...], targets i32 [N], counts bool [N])`; images that do not count have
    no target and are not triggered.
  """

  def run(args, variables, key, images, labels):
    trigger_key, function_key = jax.random.split(key)

    def one_batch(number, batch, labels):
      batch_key = jax.random.fold_in(trigger_key, number)
      batch, targets, counts = trigger_all(
        attack, variables, batch_key, batch, labels
      )
      out = function(args, jax.random.fold_in(function_key, number), batch)
      return out, targets, counts

    return map_batches(one_batch, (images, labels), batch_size, mesh)

  return compiler.jit(run)


def predict_triggered(
  model: Model,
  attack: Attack,
  batch_size: int,
  mesh: jax.sharding.Mesh,
  apply: Callable | None = None,
) -> Callable:
  """Compile the classification of a set of images, all led to one target.

  Args:
    model: the classifier.
    attack: the attack.
    batch_size: images at a time.
    mesh: where a batch is cut along.
    apply: in place of `attack.test_apply`, for instance `attack.cover`.

  Returns:
    `(weights, variables, key, images u8 [N,H,W,C], index) -> int32 [N]`, with
    every image triggered towards `attack.targets[index]`.
  """
  apply = apply or attack.test_apply

  def run(weights, variables, key, images, index):
    def one_batch(number, batch):
      batch_key = jax.random.fold_in(key, number)
      targets = jnp.full(batch.shape[:1], index, jnp.int32)
      triggered = apply(variables, batch_key, batch, targets)
      logits, _ = model.apply(*weights, triggered)
      return logits.argmax(-1).astype(jnp.int32)

    return map_batches(one_batch, (images,), batch_size, mesh)

  return compiler.jit(run)


def predict_draws(
  predict: Callable,
  weights: Weights,
  variables: TriggerVariables,
  key: jax.Array,
  images: jax.Array,
  num_targets: int,
  draws: int,
) -> np.ndarray:
  """Predict the label of every image for every draw and target.

  Args:
    predict: from `predict_triggered`.
    weights: of the classifier.
    variables: of the attack.
    key: of the evaluation; no draw was seen in training.
    images: uint8 [N,H,W,C] on the device.
    num_targets: T.
    draws: D, triggers an image and target.

  Returns:
    int32 [D,T,N] on the host.
  """
  keys = jax.random.split(key, (draws, num_targets))
  return np.array(
    [
      [
        np.asarray(predict(weights, variables, k, images, jnp.int32(i)))
        for i, k in enumerate(row)
      ]
      for row in keys
    ]
  )
