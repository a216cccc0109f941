"""GoodNet: the backdoored network and its pruned copy answer together.

python -m experiments.goodnet --run=runs/badnets-mnist
"""

import numpy as np

from bdjax.defenses import pruning
from bdjax.defenses.goodnet import goodnet
from experiments import defending
from experiments.defending import Findings, share_of
from experiments.pruning import Config, Found, prune


def defend(
  defender: defending.Defender, config: Config, space: defending.Space
) -> Found:
  """Prunes; the networks of the stops answer beside the whole one."""
  del space
  return prune(defender, config.layer, config.drops)


def examine(
  found: Found,
  defender: defending.Defender,
  exam: defending.Exam,
  config: Config,
  space: defending.Space,
) -> Findings:
  """Accuracy and ASR with "backdoored" as an answer, and coverage."""
  del config, space
  num = len(defender.class_names)
  # One pass for all: the whole network's answers first, then the copies'.
  function = pruning.predict_prefixes(defender.model, found.layer)
  args = (defender.weights, found.curve.order)
  clean = exam.clean(function, args)
  triggered = exam.triggered(function, args) if exam.has_attack else None
  measured = {}
  for text, copy in found.stops.items():
    answers = np.asarray(goodnet(clean[:, 0], clean[:, copy], num))
    measured[f"clean_accuracy_at_{text}"] = share_of(answers == exam.labels)
    measured[f"clean_coverage_at_{text}"] = share_of(answers < num)
    if triggered is not None:
      both = triggered.outputs[:, 0], triggered.outputs[:, copy]
      answers = np.asarray(goodnet(*both, num))
      hits = answers == triggered.targets
      measured |= exam.shares(f"attack_success_rate_at_{text}", hits)
      if exam.knows_labels:
        right = answers == triggered.labels
        measured[f"robust_accuracy_at_{text}"] = share_of(right)
      measured |= exam.shares(f"triggered_coverage_at_{text}", answers < num)
  return Findings(measured, {"layer": found.layer, "channels": found.stops})


DEFENSE = defending.Defense("goodnet", Config, defend, examine)

if __name__ == "__main__":
  defending.main(DEFENSE)
