"""GoodNet: the backdoored network and its pruned copy answer together.

python -m experiments.goodnet --run=runs/badnets-mnist
"""

from bdjax.defenses import pruning
from bdjax.defenses.goodnet import predict_goodnet
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
  model = pruning.masked(defender.model)
  function = predict_goodnet(defender.model, model, num)
  measured = {}
  for text, count in found.stops.items():
    mask = {found.layer: found.curve.masks[count]}
    args = (defender.weights, pruning.prune(defender.weights, mask))
    answers = exam.clean(function, args)
    measured[f"clean_accuracy_at_{text}"] = share_of(answers == exam.labels)
    measured[f"clean_coverage_at_{text}"] = share_of(answers < num)
    if exam.has_attack:
      triggered = exam.triggered(function, args)
      hits = triggered.outputs == triggered.targets
      measured |= exam.shares(f"attack_success_rate_at_{text}", hits)
      if exam.knows_labels:
        right = triggered.outputs == triggered.labels
        measured[f"robust_accuracy_at_{text}"] = share_of(right)
      answered = triggered.outputs < num
      measured |= exam.shares(f"triggered_coverage_at_{text}", answered)
  return Findings(measured, {"layer": found.layer, "channels": found.stops})


DEFENSE = defending.Defense("goodnet", Config, defend, examine)

if __name__ == "__main__":
  defending.main(DEFENSE)
