"""STRIP: does the label survive when other images are laid over? (Gao 2019).

python -m experiments.strip --run=runs/ban-mnist
"""

import dataclasses
import time
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bdjax import compiler, evaluation, metrics, plots
from bdjax.defenses import strip
from bdjax.errors import UserError
from experiments import defending
from experiments.common.defaults import check_choice
from experiments.defending import Findings, flag

# Gao et al. 2019, tables 2 and 3: N = 100, FRR 1%, the square on MNIST and
# the patch triggers on CIFAR-10; another network than ours.
_REPORTED = {
  ("badnets", "mnist"): {"far_at_0.01": 0.0185},
  ("badnets", "cifar10"): {"far_at_0.01": 0.0},
}


@dataclasses.dataclass(frozen=True)
class Config(defending.Config):
  """Flags of STRIP."""

  overlays: int | None = flag(
    None,
    "N, images laid over each input (default: 100, or all of a small pool).",
    low=1,
  )
  superimpose: str = flag(
    "additive",
    "additive (the sum: the authors' code), clipped (the sum cut at white) or "
    "blend (half of each).",
  )
  unit: str = flag("bits", "Of the entropy: bits or nats.")
  threshold: str = flag(
    "gaussian", "gaussian (a normal fit, the paper's) or quantile."
  )
  calibration: int | None = flag(
    None,
    "Images to calibrate on, at most (default: all that are no overlays).",
    low=2,
  )
  frr: str = flag("0.005,0.01,0.02,0.05", "Wanted false rejection rates.")


class Found(NamedTuple):
  """What the defender makes of its own data."""

  settings: strip.Settings
  pool: jax.Array  # uint8 [O,H,W,C]
  calibration: np.ndarray  # entropies, float32 [M]
  thresholds: dict[float, float]  # wanted FRR -> entropy
  key: jax.Array


def defend(
  defender: defending.Defender, config: Config, space: defending.Space
) -> Found:
  """Takes a fifth of the data for overlays, and calibrates on the rest."""
  rates = _rates(config.frr)
  for name, allowed in (
    ("superimpose", strip.SUPERIMPOSITIONS),
    ("unit", ("bits", "nats")),
    ("threshold", ("gaussian", "quantile")),
  ):
    check_choice(config, name, allowed)
  order_key, key = jax.random.split(space.key)
  total = len(defender.labels)
  order = jax.random.permutation(order_key, total)
  size = max(total // 5, config.overlays or 1)
  num = config.overlays or min(100, size)
  if num > total - 2:
    raise UserError(
      f"--overlays={config.overlays} is out of range: the defender has {total} "
      f"images, two of which are to calibrate on; take 1 to {total - 2}"
    )
  settings = strip.Settings(num, config.superimpose, config.unit)
  pool, calibration = order[:size], order[size:][: config.calibration]
  run = evaluation.over_images(
    strip.entropies(defender.model, settings),
    strip.inputs_at_once(num, defender.shape, defender.mesh.size),
    defender.mesh,
  )
  space.report(
    f"{len(calibration)} images to calibrate on, {num} overlays each from a "
    f"pool of {size}"
  )
  pool = defender.images[pool]
  images = defender.images[calibration]
  entropies = defending.in_pieces(
    lambda key, rows: run((defender.weights, pool), key, images[rows]),
    key,
    len(images),
  )
  thresholds = {
    rate: strip.threshold(entropies, rate, config.threshold) for rate in rates
  }
  return Found(settings, pool, entropies, thresholds, key)


def _chunk(found: Found, defender: defending.Defender) -> int:
  overlays, mesh = found.settings.overlays, defender.mesh
  return strip.inputs_at_once(overlays, defender.shape, mesh.size)


def _rates(text: str) -> list[float]:
  try:
    rates = [float(part) for part in text.split(",")]
  except ValueError:
    raise UserError(f"--frr={text}: take shares with commas") from None
  for rate in rates:
    if not 0 < rate < 1:
      raise UserError(f"--frr={text}: {rate:g} is not between 0 and 1")
  return rates


def examine(
  found: Found,
  defender: defending.Defender,
  exam: defending.Exam,
  config: Config,
  space: defending.Space,
) -> Findings:
  """Entropies of clean and of triggered test images, and what is rejected."""
  entropies = strip.entropies(defender.model, found.settings)

  def function(args, key, images):
    logits, _ = defender.model.apply(*args[0], images, False)
    return entropies(args, key, images), logits.argmax(-1)

  args = (defender.weights, found.pool)
  batch = _chunk(found, defender)
  clean, _ = exam.clean(function, args, batch)
  triggered = None
  if exam.has_attack:
    seen = exam.triggered(function, args, batch)
    triggered, labels = seen.outputs
    hits = labels == seen.targets
  measured, details = {}, {"thresholds": {}}
  for rate, limit in found.thresholds.items():
    name = f"at_{rate:g}"
    details["thresholds"][f"{rate:g}"] = limit
    measured[f"frr_{name}"] = defending.share_of(clean < limit)
    if triggered is not None:
      passed = triggered >= limit
      measured |= exam.shares(f"far_{name}", passed)
      # Of the images that pass, not all reach the target.
      measured |= exam.shares(f"attack_success_rate_{name}", passed & hits)
  if triggered is not None:
    measured["auroc"] = metrics.auroc(triggered, clean)
  samples = {"calibration": found.calibration, "clean": clean}
  if triggered is not None:
    samples["triggered"] = triggered
  for name, values in samples.items():
    measured[f"entropy_mean_{name}"] = float(values.mean())
    spread = float(values.std(ddof=1)) if len(values) > 1 else 0.0
    measured[f"entropy_sd_{name}"] = spread
    details[f"images_{name}"] = len(values)
  details["overlays"] = found.settings.overlays
  measured |= _cost(found, defender)
  plots.entropies(
    space.figure("entropies"), samples, details["thresholds"], config.unit
  )
  published = found.settings == strip.Settings() and len(exam.targets) == 1
  reported = _REPORTED.get((exam.experiment, exam.dataset), {})
  return Findings(measured, details, reported if published else {})


def _cost(found: Found, defender: defending.Defender) -> dict[str, float]:
  """Milliseconds an image, without the guard and with it: medians of five."""
  # As many at a time as in scoring: that much memory is there.
  count = _chunk(found, defender)
  images = defender.images[:count].astype(jnp.float32) / 255.0
  model, weights = defender.model, defender.weights
  limit = next(iter(found.thresholds.values()))
  guard = strip.detector(
    found.key, model, weights, found.pool, limit, found.settings
  )
  plain = compiler.jit(
    lambda weights, images: model.apply(*weights, images, False)[0].argmax(-1)
  )
  out = {}
  for name, call in (
    ("plain", lambda: plain(weights, images)),
    ("guarded", lambda: guard(images)),
  ):
    jax.block_until_ready(call())
    seconds = []
    for _ in range(5):
      begin = time.perf_counter()
      jax.block_until_ready(call())
      seconds.append(time.perf_counter() - begin)
    median = float(np.median(seconds))
    out[f"{name}_ms_an_image"] = 1e3 * median / len(images)
  return out


DEFENSE = defending.Defense("strip", Config, defend, examine, 2000)

if __name__ == "__main__":
  defending.main(DEFENSE)
