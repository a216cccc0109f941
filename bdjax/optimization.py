"""Optimizers and learning rate schedules."""

import jax
import jax.numpy as jnp
import optax
from optax import contrib

SCHEDULES = ("onecycle", "linear", "cosine", "constant")
# Learning rates of `muon` as multiples of the rate of the kernels.
_BIAS_MULTIPLE, _HEAD_MULTIPLE = 440.0, 6.9


def schedule(
  name: str, peak: float, total_steps: int, warmup: float = 0.25
) -> optax.Schedule:
  """Make a learning rate schedule.

  Args:
    name: one of `SCHEDULES`: `onecycle` (a linear rise from a twentieth of the
      peak, then a linear fall to zero; momentum stays constant), `linear` (the
      fall alone), `cosine` (a fall to zero) or `constant`.
    peak: the highest learning rate.
    total_steps: number of steps, at least 1.
    warmup: share of the steps in which `onecycle` rises, in [0,1).

  Returns:
    step -> learning rate.

  Raises:
    ValueError: the name is unknown.

  References:
    Smith and Topin (2018), Super-Convergence: Very Fast Training of Neural
    Networks Using Large Learning Rates (`onecycle`).
  """
  if name == "constant":
    return optax.constant_schedule(peak)
  if name == "cosine":
    return optax.cosine_decay_schedule(peak, total_steps)
  if name == "linear":
    return optax.linear_schedule(peak, 0.0, total_steps)
  if name != "onecycle":
    raise ValueError(
      f"schedule must be one of {', '.join(SCHEDULES)} (got {name})"
    )
  rise = max(1, int(warmup * total_steps))
  fall = max(1, total_steps - rise)
  return optax.join_schedules(
    [
      optax.linear_schedule(peak / 20, peak, rise),
      optax.linear_schedule(peak, 0.0, fall),
    ],
    [rise],
  )


def sgd(
  learning_rate: optax.ScalarOrSchedule, momentum: float, weight_decay: float
) -> optax.GradientTransformation:
  """Make SGD with Nesterov momentum.

  Args:
    learning_rate: a number or a schedule.
    momentum: in [0,1).
    weight_decay: multiple of the weights added to their gradients, as in
      PyTorch; of arrays of two or more axes only, not of biases and scales.
  """
  return optax.chain(
    optax.add_decayed_weights(
      weight_decay, mask=lambda p: jax.tree.map(lambda x: x.ndim > 1, p)
    ),
    optax.sgd(learning_rate, momentum=momentum, nesterov=True),
  )


def muon(
  learning_rate: optax.ScalarOrSchedule, momentum: float, weight_decay: float
) -> optax.GradientTransformation:
  """Make Muon for kernels, with SGD for biases and the head.

  Before each update a kernel is scaled to the norm of an update of rate 1, so
  that the learning rate is the share by which its filters turn. Biases and the
  head have learning rates of their own, a Nesterov momentum of 0.85, and weight
  decay. These rates are those of airbench94_muon (0.24 for kernels, 0.053 for
  biases and 0.67 for a head that is divided by its 256 inputs, with the loss
  summed over 2,000 images), converted to the mean loss and a head divided by 9.

  Args:
    learning_rate: of kernels [h,w,C,K], a number or a schedule; 0.24 in
      airbench94_muon.
    momentum: of kernels; 0.6 there.
    weight_decay: of matrices, which is the head; biases shrink by the same
      share in each step; 2.4e-3 there.

  Returns:
    The transformation, for params of kernels [h,w,C,K], matrices and vectors;
    arrays under a key `masks` (of `models.masking`) stay as they are.

  References:
    Jordan, Jin, Boza, You, Cesista, Newhouse and Bernstein (2024), Muon: An
    optimizer for hidden layers in neural networks.
    Jordan (2024), 94% on CIFAR-10 in 3.29 Seconds on a Single GPU.
  """

  def label(path, x):
    # Channel masks of a pruned network are data, and must not decay.
    if jax.tree_util.DictKey("masks") in path:
      return "mask"
    return {4: "kernel", 2: "head"}.get(x.ndim, "bias")

  kernel = optax.chain(
    contrib.scale_by_muon(
      ns_steps=3, beta=momentum, weight_dimension_numbers=_as_matrices
    ),
    optax.scale_by_learning_rate(learning_rate),
    optax.stateless(_with_norm_restored),
  )
  return optax.partition(
    {
      "kernel": kernel,
      "mask": optax.set_to_zero(),
      "head": _decaying_sgd(learning_rate, _HEAD_MULTIPLE, weight_decay),
      "bias": _decaying_sgd(
        learning_rate,
        _BIAS_MULTIPLE,
        weight_decay * _HEAD_MULTIPLE / _BIAS_MULTIPLE,
      ),
    },
    lambda params: jax.tree.map_with_path(label, params),
  )


def _as_matrices(kernels):
  """Treat each kernel [h,w,C,K] as a matrix [h*w*C,K], a column a filter."""
  spec = contrib.MuonDimensionNumbers((0, 1, 2), 3)
  return jax.tree.map(lambda x: spec, kernels)


def _with_norm_restored(updates, kernels):
  """Add what scales each kernel [h,w,C,K] to the norm sqrt(K)."""
  return jax.tree.map(
    lambda update, x: (
      update + x * (x.shape[3] ** 0.5 / jnp.linalg.norm(x) - 1.0)
    ),
    updates,
    kernels,
  )


def _decaying_sgd(learning_rate, multiple, weight_decay):
  def rate(step):
    if callable(learning_rate):
      return multiple * learning_rate(step)
    return multiple * learning_rate

  return optax.chain(
    optax.add_decayed_weights(weight_decay),
    optax.sgd(rate, momentum=0.85, nesterov=True),
  )
