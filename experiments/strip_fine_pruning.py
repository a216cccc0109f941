"""STRIP in front of a fine-pruned network: reject, else answer repaired.

python -m experiments.strip_fine_pruning --run=runs/badnets-mnist

STRIP looks at the network as delivered, where the backdoor still gives itself
away; the fine-pruned network answers. What STRIP rejects gets the class K + 1.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bdjax import metrics
from bdjax.defenses import strip
from bdjax.errors import UserError
from experiments import defending, fine_pruning
from experiments import strip as strip_experiment
from experiments.defending import Findings, flag, share_of


@dataclasses.dataclass(frozen=True)
class Config(fine_pruning.Config, strip_experiment.Config):
  """Flags of both; of the wanted FRRs there is one."""

  frr: str = flag("0.01", "Wanted false rejection rate.")


class Found(NamedTuple):
  """What the defender has at the end of both."""

  strip: strip_experiment.Found
  repaired: fine_pruning.Found


def defend(
  defender: defending.Defender, config: Config, space: defending.Space
) -> Found:
  """Calibrates STRIP, and repairs the network by activation or by value."""
  if "," in config.frr:
    raise UserError(f"--frr={config.frr}: take one rate here")
  one, two = jax.random.split(space.key)
  found = strip_experiment.defend(defender, config, space._replace(key=one))
  repaired = fine_pruning.defend(defender, config, space._replace(key=two))
  return Found(found, repaired)


def examine(
  found: Found,
  defender: defending.Defender,
  exam: defending.Exam,
  config: Config,
  space: defending.Space,
) -> Findings:
  """Answers on clean images, on triggered ones, and on a stream of both."""
  del config, space
  (limit,) = found.strip.thresholds.values()
  num = len(defender.class_names)
  entropies = strip.entropies(defender.model, found.strip.settings)
  model = found.repaired.model

  def answer(args, key, images):
    suspect, repaired = args
    rejected = entropies(suspect, key, images) < limit
    logits, _ = model.apply(*repaired, images, False)
    return jnp.where(rejected, num, logits.argmax(-1))

  args = (
    (defender.weights, found.strip.pool),
    found.repaired.networks[-1],
  )
  batch = strip.inputs_at_once(
    found.strip.settings.overlays, defender.shape, defender.mesh.size
  )
  clean = exam.clean(answer, args, batch)
  right = clean == exam.labels
  measured = {
    "clean_accuracy": share_of(right),
    "frr": share_of(clean == num),
  }
  if exam.has_attack:
    triggered = exam.triggered(answer, args, batch)
    hits = triggered.outputs == triggered.targets
    refused = triggered.outputs == num
    good = refused | (triggered.outputs == triggered.labels)
    measured |= exam.shares("attack_success_rate", hits)
    if exam.knows_labels:
      right_too = share_of(triggered.outputs == triggered.labels)
      measured["robust_accuracy"] = right_too
      # Right is the true class, and for triggered inputs also K + 1.
      measured["triggered_accuracy"] = share_of(good)
      measured["mixed_accuracy"] = metrics.proportion(
        float(np.concatenate([right, good]).mean()), len(right)
      )
    measured |= exam.shares("far", ~refused)
  details = {"threshold": limit, "networks": found.repaired.details[-1]}
  return Findings(measured, details)


DEFENSE = defending.Defense(
  "strip_fine_pruning",
  Config,
  defend,
  examine,
  eval_images=2000,
  variant=fine_pruning.DEFENSE.variant,
)

if __name__ == "__main__":
  defending.main(DEFENSE)
