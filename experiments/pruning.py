"""Pruning: channels that clean inputs leave dormant go (Liu et al. 2018).

python -m experiments.pruning --run=runs/badnets-mnist
python -m experiments.pruning --run=runs/badnets-mnist --layer=conv_1
"""

import dataclasses
from typing import NamedTuple

import numpy as np

from bdjax import plots
from bdjax.defenses import pruning
from bdjax.errors import UserError
from experiments import defending
from experiments.defending import Findings, flag


@dataclasses.dataclass(frozen=True)
class Config(defending.Config):
  """Flags of pruning."""

  layer: str | None = flag(None, "Whose channels go (default: the last).")
  drops: str = flag(
    "0.02,0.04,0.1",
    "Falls of accuracy on the defender's data at which a network is kept.",
  )


class Found(NamedTuple):
  """What the defender finds; C channels."""

  layer: str
  curve: pruning.Curve
  stops: dict[str, int]  # fall of accuracy -> channels pruned


def defend(
  defender: defending.Defender, config: Config, space: defending.Space
) -> Found:
  """Prunes to the end, and keeps the network of every stop."""
  layer, curve, stops = prune(defender, config.layer, config.drops)
  for text, count in stops.items():
    weights = pruning.prune(defender.weights, {layer: curve.masks[count]})
    space.save(f"drop-{text}", weights)
  return Found(layer, curve, stops)


def prune(defender: defending.Defender, layer: str | None, drops: str) -> Found:
  """The curve on the defender's data, and where it has fallen enough.

  Raises:
    UserError: no such layer, or drops that are no shares.
  """
  layer = pruning.check_layer(defender.model, defender.shape, layer)
  try:
    shares = {text.strip(): float(text) for text in drops.split(",")}
  except ValueError:
    raise UserError(f"--drops={drops}: take shares with commas") from None
  for share in shares.values():
    if not 0 < share < 1:
      raise UserError(f"--drops={drops}: {share:g} is not between 0 and 1")
  make = pruning.make_curve(
    defender.model, layer, defender.batch(), defender.mesh
  )
  curve = make(defender.weights, defender.images, defender.labels)
  counts = pruning.stops(curve.accuracies, tuple(shares.values()))
  return Found(layer, curve, dict(zip(shares, counts.tolist(), strict=True)))


def examine(
  found: Found,
  defender: defending.Defender,
  exam: defending.Exam,
  config: Config,
  space: defending.Space,
) -> Findings:
  """Clean accuracy and ASR for every number of channels pruned."""
  curve, layer = found.curve, found.layer
  function = pruning.predict_prefixes(defender.model, layer)
  args = (defender.weights, curve.order)
  clean = exam.clean(function, args) == exam.labels[:, None]
  curves = {"clean accuracy": clean.mean(0)}
  hits = None
  if exam.has_attack:
    triggered = exam.triggered(function, args)
    hits = triggered.outputs == triggered.targets[:, None]
    curves["attack success rate"] = hits.mean(0)
  measured = {}
  for text, count in {"0": 0, **found.stops}.items():
    measured[f"channels_at_{text}"] = count
    measured[f"clean_accuracy_at_{text}"] = defending.share_of(clean[:, count])
    if hits is not None:
      name = f"attack_success_rate_at_{text}"
      measured |= exam.shares(name, hits[:, count])
  details = {
    "layer": layer,
    "order": np.asarray(curve.order).tolist(),
    "defender_accuracy": curve.accuracies.tolist(),
    **{title: values.tolist() for title, values in curves.items()},
  }
  curves["accuracy, defender's data"] = curve.accuracies
  marks = {f"fall {text}": count for text, count in found.stops.items()}
  plots.pruning_curve(space.figure("pruning"), curves, marks, layer)
  return Findings(measured, details)


DEFENSE = defending.Defense("pruning", Config, defend, examine)

if __name__ == "__main__":
  defending.main(DEFENSE)
