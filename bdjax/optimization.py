"""Optimisers and learning rate schedules."""

import jax
import jax.numpy as jnp
import optax
from optax import contrib

# Learning rates of `muon`, as multiples of that of the kernels.
_BIASES, _HEAD = 440.0, 6.9


def schedule(
  name: str, peak: float, total_steps: int, warmup: float = 0.25
) -> optax.Schedule:
  """The learning rate over the steps of a run.

  Args:
    name: `onecycle` (linear rise for the share `warmup` of the steps, linear
      fall to zero: Smith and Topin 2018 without the momentum's cycle),
      `linear` (the fall alone), `cosine` or `constant`.
    peak: the highest learning rate.
    total_steps: at least 1.
    warmup: share of the steps, in [0,1).
  """
  if name == "constant":
    return optax.constant_schedule(peak)
  if name == "cosine":
    return optax.cosine_decay_schedule(peak, total_steps)
  if name == "linear":
    return optax.linear_schedule(peak, 0.0, total_steps)
  if name != "onecycle":
    raise ValueError(f"unknown schedule {name!r}")
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
  """SGD with Nesterov momentum; weight decay on kernels, not on vectors."""
  return optax.chain(
    optax.add_decayed_weights(
      weight_decay, mask=lambda p: jax.tree.map(lambda x: x.ndim > 1, p)
    ),
    optax.sgd(learning_rate, momentum=momentum, nesterov=True),
  )


def muon(
  learning_rate: optax.ScalarOrSchedule, momentum: float, weight_decay: float
) -> optax.GradientTransformation:
  """Muon on kernels (Jordan et al. 2024), SGD with momentum on the rest.

  The rates are those of the CIFAR-10 speed record with Muon (airbench94_muon:
  0.24 for kernels, 0.053 for biases and 0.67 for a head that is divided by its
  256 inputs, of the loss summed over 2,000 images), brought to the mean loss
  over a batch and a head divided by 9. Before each update a kernel is brought
  to the norm that an update of rate 1 has, so that the learning rate is the
  share by which its filters turn. Biases and the head have rates of their own,
  Nesterov momentum of 0.85, and decay.

  Args:
    learning_rate: of kernels [h,w,C,K]; the record's is 0.24.
    momentum: of kernels; the record's is 0.6.
    weight_decay: of matrices, the head; biases shrink at the same pace. The
      record's is 2.4e-3.

  Returns:
    The transformation, for params of kernels [h,w,C,K], matrices and vectors;
    what lies under a key `masks` (`defenses.masking`) stays as it is.
  """

  def label(path, x):
    # Of a pruned network (`defenses.masking`): data, which must not decay.
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
      "head": _decaying_sgd(learning_rate, _HEAD, weight_decay),
      "bias": _decaying_sgd(
        learning_rate, _BIASES, weight_decay * _HEAD / _BIASES
      ),
    },
    lambda params: jax.tree.map_with_path(label, params),
  )


def _as_matrices(kernels):
  """A kernel [h,w,C,K] is a matrix [h*w*C,K], a column for each filter."""
  spec = contrib.MuonDimensionNumbers((0, 1, 2), 3)
  return jax.tree.map(lambda x: spec, kernels)


def _with_norm_restored(updates, kernels):
  """Adds what brings each kernel [h,w,C,K] to the norm sqrt(K)."""

  def one(update, x):
    return update + x * (x.shape[3] ** 0.5 / jnp.linalg.norm(x) - 1.0)

  return jax.tree.map(one, updates, kernels)


def _decaying_sgd(learning_rate, multiple, weight_decay):
  def rate(step):
    now = learning_rate(step) if callable(learning_rate) else learning_rate
    return multiple * now

  return optax.chain(
    optax.add_decayed_weights(weight_decay),
    optax.sgd(rate, momentum=0.85, nesterov=True),
  )
