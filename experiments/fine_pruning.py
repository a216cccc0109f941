"""Fine-pruning: prune, then fine-tune what is left (Liu et al. 2018).

python -m experiments.fine_pruning --run=runs/badnets-mnist
python -m experiments.fine_pruning --run=runs/badnets-mnist --by=value

By value was published for a network of faces, clean accuracy / ASR: 97.8 /
100.0 before, then 87.8 / 33.9, 86.0 / 8.8 and 86.1 / 0.44 over the rounds.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bdjax import plots
from bdjax.attacks.triggers import Trigger
from bdjax.checkpoints import Checkpoints
from bdjax.data.augment import augment
from bdjax.defenses import fine_pruning, pruning, tuning
from bdjax.errors import UserError
from bdjax.models import Model, Weights
from bdjax.training import TrainState
from experiments import defending
from experiments.defending import Findings, flag

KEPT_ROUNDS = 200  # all of them, at the smallest --step
_DEFAULTS = {
  "activation": {"drop": 0.3, "epochs": 20, "learning_rate": 0.05},
  "value": {"drop": 0.02, "epochs": 1, "learning_rate": 1e-3},
}


@dataclasses.dataclass(frozen=True)
class Config(defending.Config):
  """Flags of fine-pruning."""

  by: str = flag("activation", "activation (channels) or value (weights).")
  layer: str | None = flag(
    None, "By activation: whose channels go (default: the last)."
  )
  drop: float | None = flag(
    None,
    "Fall of accuracy on the defender's data at which pruning ends (default: "
    "0.3, for tuning to win back); by value the most that all rounds may cost "
    "after tuning (default: 0.02).",
    above=0,
    below=1,
  )
  step: float = flag(
    0.05,
    "By value: share of the weights' range a round.",
    low=0.005,
    below=1,
  )
  epochs: int | None = flag(
    None,
    "Of tuning, over the defender's data (default: 20; by value 1 a round).",
    low=1,
  )
  learning_rate: float | None = flag(
    None, "Of tuning (default: 0.05; by value 0.001).", above=0
  )
  weight_decay: float = flag(5e-4, "Of kernels, in tuning.", low=0)
  augment: str | None = flag(
    None,
    "In tuning: none, crop or crop_flip (default: colour images crop_flip, "
    "grey ones of 16 pixels and more crop).",
  )
  tune_batch_size: int = flag(64, "Images an update.", low=1)
  proxy: bool = flag(
    False,
    "By value: ends when the trigger of the class that neural_cleanse, run "
    "before, flagged in this run no longer works.",
  )


class Found(NamedTuple):
  """The networks on the way, the repaired one last; as delivered first."""

  model: Model
  names: list[str]
  networks: list[Weights]
  details: list[dict[str, Any]]


def defend(
  defender: defending.Defender, config: Config, space: defending.Space
) -> Found:
  """Repairs the network in one of the two published ways."""
  config = _resolved(config, defender.shape)
  if config.proxy and config.by == "activation":
    raise UserError("--proxy goes with --by=value: leave it out")
  if config.by == "activation":
    return _by_activation(defender, config, space)
  return _by_value(defender, config, space)


def _resolved(config: Config, shape: tuple[int, int, int]) -> Config:
  """Fills in what depends on the form and on the images."""
  if config.by not in _DEFAULTS:
    raise UserError(f"--by={config.by} is unknown: take activation or value")
  augmentation = "crop" if min(shape[:2]) >= 16 else "none"
  if shape[2] == 3:
    augmentation = "crop_flip"
  values = _DEFAULTS[config.by] | {"augment": augmentation}
  missing = {k: v for k, v in values.items() if getattr(config, k) is None}
  return dataclasses.replace(config, **missing)


def _by_activation(defender, config, space) -> Found:
  """Prunes channels until the accuracy has fallen, then tunes."""
  layer = pruning.check_layer(defender.model, defender.shape, config.layer)
  model = pruning.masked(defender.model)
  tune = _tune(model, defender, config)
  repair = fine_pruning.make_by_activation(
    defender.model, layer, defender.batch(), defender.mesh, tune, config.drop
  )
  found = repair(space.key, defender.weights, defender.images, defender.labels)
  defending.check_finite(found.tuned, "--learning_rate")
  space.save("repaired", found.tuned)
  whole = pruning.prune(
    defender.weights, {layer: jnp.ones_like(found.curve.masks[0])}
  )
  detail = {
    "layer": layer,
    "channels": found.channels,
    "defender_accuracy": float(found.curve.accuracies[found.channels]),
  }
  return Found(
    model,
    ["before", "pruned", "repaired"],
    [whole, found.pruned, found.tuned],
    [{}, detail, detail],
  )


def _tune(model, defender, config):
  return tuning.make_tune(
    model,
    defender.batch(config.tune_batch_size),
    defender.mesh,
    epochs=config.epochs,
    learning_rate=config.learning_rate,
    weight_decay=config.weight_decay,
    transform=lambda trigger: augment(config.augment),
    schedule="constant" if config.by == "value" else "onecycle",
  )


def _by_value(defender, config, space):
  """Rounds of pruning weights and tuning, each kept for a restart."""
  tune = _tune(defender.model, defender, config)
  rounds = fine_pruning.make_rounds(
    defender.model,
    defender.batch(),
    defender.mesh,
    tune,
    step=config.step,
    drop=config.drop,
  )
  suspect = _suspect(space) if config.proxy else None
  names, networks, details = ["before"], [defender.weights], [{}]
  for done in _kept_rounds(rounds, defender, suspect, space):
    names.append(f"{done.percent:.0%}")
    networks.append(done.weights)
    details.append(
      {
        "pruned_share": done.pruned,
        "defender_accuracy_pruned": done.pruned_accuracy,
        "defender_accuracy": done.accuracy,
        "proxy": done.proxy,
        "accepted": done.accepted,
      }
    )
  accepted = [i for i, d in enumerate(details) if d.get("accepted", True)]
  space.save("repaired", networks[accepted[-1]])
  names.append("repaired")
  networks.append(networks[accepted[-1]])
  details.append(details[accepted[-1]])
  return Found(defender.model, names, networks, details)


def _suspect(space) -> fine_pruning.Suspect:
  """The smallest trigger that Neural Cleanse flagged in this run."""
  path = space.directory.parent / "neural_cleanse" / "triggers.npz"
  if not path.exists():
    raise UserError(f"--proxy needs {path}: run experiments.neural_cleanse")
  with np.load(path) as found:
    if not len(found["flagged"]):
      raise UserError(f"--proxy: no class is flagged in {path}")
    label = int(found["flagged"][0])
    trigger = Trigger(
      jnp.asarray(found["masks"][label]), jnp.asarray(found["patterns"][label])
    )
  return fine_pruning.Suspect(trigger, label)


def _kept_rounds(rounds, defender, suspect, space):
  """Yields the rounds of earlier starts, then the others, kept at once."""
  target = TrainState(
    jax.ShapeDtypeStruct((), np.int32), *defender.weights, None
  )
  path = space.directory / "checkpoints" / "rounds"
  last = None
  with Checkpoints(path, keep_latest=KEPT_ROUNDS) as checkpoints:
    for number in range(1, (checkpoints.latest_step() or 0) + 1):
      kept = checkpoints.restore(target, step=number)
      weights = Weights(kept.state.params, kept.state.batch_stats)
      last = fine_pruning.Round(weights=weights, mask=None, **kept.meta)
      yield last
    new = rounds(
      space.key,
      defender.weights,
      defender.images,
      defender.labels,
      suspect,
      last,
    )
    for done in space.progress(new, "round"):
      state = TrainState(np.int32(done.number), *done.weights, None)
      meta = done._asdict()
      del meta["weights"], meta["mask"]
      defending.check_finite(done.weights, "--learning_rate")
      checkpoints.save(done.number, state, {}, meta, 0.0)
      yield done


def examine(
  found: Found,
  defender: defending.Defender,
  exam: defending.Exam,
  config: Config,
  space: defending.Space,
) -> Findings:
  """Scores of every network on the way; nothing is chosen by them."""
  del defender, config
  measured, rows = {}, []
  for name, weights, detail in zip(
    found.names, found.networks, found.details, strict=True
  ):
    scores = exam.scores(found.model, weights)
    means = {title: score.mean for title, score in scores.items()}
    rows.append({"name": name, **means, **detail})
    if name in ("before", "pruned", "repaired"):
      measured |= {f"{title}_{name}": s for title, s in scores.items()}
  curves = {"clean accuracy": [row["clean_accuracy"] for row in rows]}
  if exam.has_attack:
    curves["attack success rate"] = [r["attack_success_rate"] for r in rows]
  plots.rounds(space.figure("rounds"), found.names, curves)
  return Findings(measured, {"networks": rows})


DEFENSE = defending.Defense(
  "fine_pruning",
  Config,
  defend,
  examine,
  variant=lambda config: "-value" if config.by == "value" else "",
)

if __name__ == "__main__":
  defending.main(DEFENSE)
