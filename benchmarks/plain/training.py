"""A training step in plain JAX and Flax: a compiled step, a Python loop."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax


def make_steps(
  net: Any,
  images: jax.Array,
  labels: jax.Array,
  rows: jax.Array,
  *,
  rate: float,
  momentum: float,
  decay: float,
  scanned: bool = False,
) -> Callable[[], jax.Array]:
  """Make training steps over images that lie on the device.

  Args:
    net: a Linen network.
    images: uint8 [N,H,W,C].
    labels: int32 [N].
    rows: int32 [steps,batch], the images of each step.
    rate: learning rate.
    momentum: Nesterov's.
    decay: weight decay, on kernels.
    scanned: all steps in one `lax.scan`, not in a Python loop.

  Returns:
    A function that runs all steps and returns the losses, or the last loss.
  """
  optimizer = optax.chain(
    optax.add_decayed_weights(
      decay, mask=lambda p: jax.tree.map(lambda x: x.ndim > 1, p)
    ),
    optax.sgd(rate, momentum=momentum, nesterov=True),
  )
  shape = (1, *images.shape[1:])
  init = jax.jit(functools.partial(net.init, train=False))
  variables = init(jax.random.key(0), jnp.zeros(shape))
  params = variables.pop("params")
  state = (params, variables, optimizer.init(params))

  def step(state, batch):
    params, stats, opt_state = state
    x = images[batch].astype(jnp.float32) / 255.0

    def loss_fn(params):
      logits, updated = net.apply(
        {"params": params, **stats}, x, train=True, mutable=["batch_stats"]
      )
      losses = optax.softmax_cross_entropy_with_integer_labels(
        logits.astype(jnp.float32), labels[batch]
      )
      return losses.mean(), {**stats, **updated}

    (loss, stats), grads = jax.value_and_grad(loss_fn, has_aux=True)(params)
    updates, opt_state = optimizer.update(grads, opt_state, params)
    return (optax.apply_updates(params, updates), stats, opt_state), loss

  step_alone = jax.jit(step)
  epoch = jax.jit(lambda state, rows: jax.lax.scan(step, state, rows))

  def run():
    nonlocal state
    if scanned:
      state, losses = epoch(state, rows)
      return losses
    for batch in rows:
      state, loss = step_alone(state, batch)
    return loss

  return run
