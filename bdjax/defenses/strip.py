"""STRIP (Gao et al. 2019): triggered inputs keep their label when overlaid."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy

from bdjax import compiler, memory
from bdjax.errors import UserError
from bdjax.models.base import Model, Weights

SUPERIMPOSITIONS = ("additive", "clipped", "blend")


class Settings(NamedTuple):
  """How entropies are taken.

  Attributes:
    overlays: N, superimposed on each input; 100 in the paper.
    superimpose: one of `SUPERIMPOSITIONS`, see `superimpose`.
    unit: of the entropy, `bits` (the paper's, equation 2) or `nats` (most
      later implementations).
  """

  overlays: int = 100
  superimpose: str = "additive"
  unit: str = "bits"


def superimpose(
  images: jax.Array, overlays: jax.Array, how: str = "additive"
) -> jax.Array:
  """Lays overlays over images.

  Args:
    images: float32 [...,H,W,C] in [0,1].
    overlays: the same, broadcastable against the images.
    how: `additive`, the sum (the authors' released code: OpenCV's addWeighted
      with weights 1 and 1, on float images, which it does not cut); `clipped`,
      the sum cut at 1, as it is on uint8 images and in ports to PyTorch, where
      a bright trigger drowns in a bright overlay; or `blend`, half of each
      (BackdoorBench and others).

  Returns:
    float32 in [0,1], for `additive` in [0,2]: brighter than any image, but
    the trigger stands out from what lies around it as in the image.
  """
  if how == "additive":
    return images + overlays
  if how == "clipped":
    return jnp.minimum(images + overlays, 1.0)
  if how == "blend":
    return 0.5 * images + 0.5 * overlays
  raise ValueError(f"unknown superimposition {how!r}")


def entropy(logits: jax.Array, unit: str = "bits") -> jax.Array:
  """Shannon entropy of the softmax (Gao et al. 2019, equation 2).

  Args:
    logits: float32 [...,K]; the entropy is over this last axis, the classes.
    unit: `bits` or `nats`.

  Returns:
    float32 [...], in [0, log K].
  """
  if unit not in ("bits", "nats"):
    raise ValueError(f"unknown unit {unit!r}")
  log_p = jax.nn.log_softmax(logits)
  # p log p is 0 at p = 0, where log p is -inf for logits far apart.
  terms = jnp.where(log_p > -jnp.inf, jnp.exp(log_p) * log_p, 0.0)
  nats = -terms.sum(-1)
  return nats / jnp.log(2.0) if unit == "bits" else nats


def entropies(model: Model, settings: Settings) -> Callable:
  """The mean entropy of each input over its overlays (section 4, equation 4).

  Each input draws its own N overlays from the pool, none twice. All B x N
  superimpositions go through the model at once: cut the inputs into chunks
  with `evaluation.over_images`, of `inputs_at_once`.

  Args:
    model: the network under suspicion.
    settings: the variant.

  Returns:
    `(args, key, images f32 [B,H,W,C] in [0,1]) -> float32 [B]`, where args is
    (weights, pool uint8 [O,H,W,C]) with O at least N.
  """
  num = settings.overlays

  def run(args, key, images):
    weights, pool = args
    keys = jax.random.split(key, images.shape[0])
    rows = jax.vmap(
      lambda k: jax.random.choice(k, pool.shape[0], (num,), replace=False)
    )(keys)  # [B,N]
    overlays = pool[rows].astype(jnp.float32) / 255.0
    mixed = superimpose(images[:, None], overlays, settings.superimpose)
    logits, _ = model.apply(
      *weights, mixed.reshape(-1, *images.shape[1:]), False
    )
    each = entropy(logits, settings.unit)
    return each.reshape(-1, num).mean(1)

  return run


def inputs_at_once(
  overlays: int, image_shape: tuple[int, int, int], devices: int = 1
) -> int:
  """How many inputs a chunk holds: a multiple of `devices`.

  Their superimpositions are as many as `memory.images_at_once`: on CPU over
  all devices, which share its cache, else on each.
  """
  wanted = memory.images_at_once(image_shape)
  if jax.default_backend() != "cpu":
    wanted *= devices
  return max(1, wanted // overlays // devices) * devices


def threshold(
  calibration: np.ndarray, frr: float, method: str = "gaussian"
) -> float:
  """The entropy below which an input is rejected, for a wanted FRR.

  Args:
    calibration: float [M], entropies of clean inputs, the defender's.
    frr: wanted share of clean inputs rejected, in (0,1).
    method: `gaussian`, the quantile of a normal distribution fitted to the
      calibration entropies (the paper, section 5), or `quantile`, their
      empirical one: the largest threshold that rejects at most that share of
      them.

  Raises:
    UserError: frr is not in (0,1), or too small for so few images.
  """
  if not 0 < frr < 1:
    raise UserError(f"frr {frr} is out of range: take a share between 0 and 1")
  if method == "gaussian":
    if len(calibration) < 2:
      raise UserError("a normal distribution takes 2 calibration images")
    return float(
      scipy.stats.norm.ppf(frr, calibration.mean(), calibration.std(ddof=1))
    )
  if method != "quantile":
    raise ValueError(f"unknown threshold method {method!r}")
  needed = int(np.ceil(1 / frr - 1e-9))
  if len(calibration) < needed:
    raise UserError(
      f"an FRR of {frr:g} takes {needed} calibration images, here are "
      f"{len(calibration)}: raise --frr, or take --threshold=gaussian or a "
      "larger --defender_fraction in training"
    )
  # As many lie strictly below the k-th smallest (from 0) as k.
  return float(np.sort(calibration)[int(frr * len(calibration) + 1e-9)])


def detector(
  key: jax.Array,
  model: Model,
  weights: Weights,
  pool: jax.Array,
  limit: float,
  settings: Settings,
) -> Callable:
  """A guard in front of a deployed model.

  Args:
    key: of the overlays; the same images get the same verdict.
    model: the network.
    weights: its weights.
    pool: uint8 [O,H,W,C], clean images to take overlays from.
    limit: from `threshold`, with the same settings.
    settings: the variant.

  Returns:
    A jitted `images f32 [B,H,W,C] in [0,1] -> (labels int32 [B], rejected
    bool [B])`.
  """
  measure = entropies(model, settings)

  def guard(weights, pool, images):
    logits, _ = model.apply(*weights, images, False)
    found = measure((weights, pool), key, images)
    return logits.argmax(-1).astype(jnp.int32), found < limit

  # Arguments, not constants: a compiler folds constants, which takes long.
  return functools.partial(compiler.jit(guard), weights, pool)
