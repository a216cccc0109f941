"""STRIP: triggered inputs keep their label when other images are overlaid.

References:
  Gao, Xu, Wang, Chen, Ranasinghe and Nepal (2019), STRIP: A Defence Against
  Trojan Attacks on Deep Neural Networks.
"""

import dataclasses
import functools
import logging
import pathlib
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import scipy

from bdjax import batching, compiler
from bdjax.defenses.base import Defender, DefenseMethod, InputDetector
from bdjax.defenses.checks import check_images, parse_shares
from bdjax.defenses.overlay_entropy import (
  SUPERIMPOSITIONS,
  UNITS,
  entropies,
  entropy,
  max_batch_size,
  superimpose,
)
from bdjax.errors import UserError
from bdjax.models import Model, Weights
from bdjax.settings import check, setting

__all__ = [
  "METHOD",
  "StripSettings",
  "SUPERIMPOSITIONS",
  "calibrate",
  "detector",
  "entropies",
  "entropy",
  "max_batch_size",
  "superimpose",
  "threshold",
]

logger = logging.getLogger(__name__)

THRESHOLDS = ("gaussian", "quantile")


@dataclasses.dataclass(frozen=True)
class StripSettings:
  """Settings of STRIP."""

  overlays: int | None = setting(
    None,
    "N, images laid over each input (default: 100, or all of a small pool).",
    low=1,
  )
  superimpose: str = setting(
    "additive",
    "Superimposition: additive (the sum: the authors' code), clipped (the sum "
    "cut at 1) or blend (half of each).",
    choices=SUPERIMPOSITIONS,
  )
  unit: str = setting("bits", "Unit of the entropy.", choices=UNITS)
  threshold: str = setting(
    "gaussian",
    "Threshold: gaussian (of a normal fit, the paper's) or quantile.",
    choices=THRESHOLDS,
  )
  calibration: int | None = setting(
    None,
    "Calibration images, at most (default: all that are no overlays).",
    low=2,
  )
  frr: str = setting(
    "0.005,0.01,0.02,0.05", "False rejection rates to calibrate for."
  )


def threshold(
  calibration: np.ndarray, frr: float, method: str = "gaussian"
) -> float:
  """Return the entropy below which an input is rejected, for a wanted FRR.

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
    raise UserError(f"frr must be between 0 and 1 (got {frr})")
  count = len(calibration)
  if method == "gaussian":
    if count < 2:
      raise UserError(
        f"the gaussian threshold needs 2 calibration images (got {count})"
      )
    return float(
      scipy.stats.norm.ppf(frr, calibration.mean(), calibration.std(ddof=1))
    )
  if method != "quantile":
    raise ValueError(f"unknown threshold method {method!r}")
  needed = int(np.ceil(1 / frr - 1e-9))
  if count < needed:
    raise UserError(
      f"frr must be at least {1 / count:.2g} with the {count} calibration "
      f"images there are (got {frr:g}, which needs {needed}): raise it, use "
      "the gaussian threshold or a larger defender_fraction"
    )
  # As many lie strictly below the k-th smallest (from 0) as k.
  return float(np.sort(calibration)[int(frr * count + 1e-9)])


def calibrate(
  defender: Defender,
  settings: StripSettings | None = None,
  directory: pathlib.Path | None = None,
) -> tuple[InputDetector]:
  """Calibrate STRIP on the defender's images.

  A fifth of the images, drawn at random, is the pool of overlays; thresholds
  come from the entropies of the others. It costs N forward passes for each
  calibration image, and later for each input.

  Args:
    defender: the network and clean images, at least 3.
    settings: of entropies and thresholds; None for the defaults.
    directory: not used.

  Returns:
    The detector. Its score is minus the mean entropy, so that it is high where
    the label survives the overlays.

  Raises:
    UserError: settings are out of range, or there are too few images.

  References:
    Gao, Xu, Wang, Chen, Ranasinghe and Nepal (2019), STRIP: A Defence Against
    Trojan Attacks on Deep Neural Networks, sections 4 and 5.
  """
  del directory
  settings = settings or StripSettings()
  check(settings)
  rates = parse_shares(settings.frr, "frr").values()
  overlays, pool_rows, calibration_rows, key = _divide(defender, settings)
  measure = entropies(
    defender.model, overlays, settings.superimpose, settings.unit
  )

  def score(args, key, images):
    return -measure(args, key, images)

  batch_size = max_batch_size(
    overlays, defender.image_shape, devices=defender.mesh.size
  )
  run = batching.over_images(score, batch_size, defender.mesh)
  args = (defender.weights, defender.images[pool_rows])
  images = defender.images[calibration_rows]
  logger.info(
    "%d images to calibrate on, %d overlays each from a pool of %d",
    len(images),
    overlays,
    len(pool_rows),
  )
  scores = batching.map_in_chunks(
    lambda key, rows: run(args, key, images[rows]), key, len(images)
  )
  limits = {r: threshold(-scores, r, settings.threshold) for r in rates}
  detector = InputDetector(
    score=score,
    args=args,
    thresholds={rate: -limit for rate, limit in limits.items()},
    calibration=scores,
    unit=f"-entropy, {settings.unit}",
    batch_size=batch_size,
    details={
      "overlays": overlays,
      "pool_images": len(pool_rows),
      "entropy_thresholds": {f"{r:g}": limit for r, limit in limits.items()},
    },
  )
  return (detector,)


def _divide(defender, settings):
  """Return N, the rows of pool and calibration images, and a key."""
  check_images(defender, 3)
  order_key, key = jax.random.split(defender.key)
  total = len(defender.labels)
  order = jax.random.permutation(order_key, total)
  size = max(total // 5, settings.overlays or 1)
  overlays = settings.overlays or min(100, size)
  if overlays > total - 2:
    raise UserError(
      f"overlays must be at most {total - 2} (got {overlays}): the defender "
      f"has {total} images, two of which are to calibrate on"
    )
  return overlays, order[:size], order[size:][: settings.calibration], key


def detector(
  key: jax.Array,
  model: Model,
  weights: Weights,
  pool: jax.Array,
  limit: float,
  overlays: int = 100,
  superimposition: str = "additive",
  unit: str = "bits",
) -> Callable:
  """Compile a guard in front of a deployed model.

  Args:
    key: of the overlays; the same images get the same verdict.
    model: the network.
    weights: its weights.
    pool: uint8 [O,H,W,C], clean images to take overlays from.
    limit: an entropy from `threshold`, with the same overlays,
      superimposition and unit.
    overlays: as for `entropies`.
    superimposition: likewise.
    unit: likewise.

  Returns:
    A jitted `images f32 [B,H,W,C] in [0,1] -> (labels int32 [B], rejected
    bool [B])`.
  """
  measure = entropies(model, overlays, superimposition, unit)

  def guard(weights, pool, images):
    logits, _ = model.apply(*weights, images)
    values = measure((weights, pool), key, images)
    return logits.argmax(-1).astype(jnp.int32), values < limit

  # Arguments, not constants: a compiler folds constants, which takes long.
  return functools.partial(compiler.jit(guard), weights, pool)


def _as_published(settings: StripSettings) -> bool:
  """Return whether the published scores belong to these settings."""
  form = settings.superimpose, settings.unit, settings.threshold
  many = settings.overlays in (None, 100)
  return many and form == ("additive", "bits", "gaussian")


METHOD = DefenseMethod(
  "strip",
  StripSettings,
  calibrate,
  "Gao, Xu, Wang, Chen, Ranasinghe and Nepal (2019), STRIP: A Defence Against "
  "Trojan Attacks on Deep Neural Networks",
  eval_images=2000,
  # Tables 2 and 3: N = 100, FRR 1%, the square on MNIST and the patch triggers
  # on CIFAR-10; another network than ours.
  reported={
    ("badnets", "mnist"): {"far_at_0.01": 0.0185},
    ("badnets", "cifar10"): {"far_at_0.01": 0.0},
  },
  standard=_as_published,
)
