"""A trained run, split into what each side may see."""

import pathlib
import zlib
from typing import Any, NamedTuple

import jax
import numpy as np

from bdjax.attacks.base import Attack, TriggerVariables
from bdjax.attacks.poisoned_set import PoisonedSet
from bdjax.data import Splits
from bdjax.defenses.base import Defender, TrainingDefender
from bdjax.errors import UserError
from bdjax.evaluation import HeldOutEvaluator, Original, TriggeredSet
from bdjax.models import Weights
from bdjax.runs.config import RunConfig
from bdjax.runs.setup import build, make_keys
from bdjax.runs.train import poisoned_set


class TrainedRun(NamedTuple):
  """A trained network: the defender's side, and the attacker's.

  Attributes:
    directory: of the run, or of the checkpoints.
    config: of the run.
    step: of the checkpoint.
    defender: what a defence sees, with a key of its own.
    attack: None for a clean run, and where it is not known.
    variables: of the attack.
    splits: all data.
    triggered: triggered images instead of an attack; None for our own runs.
    name: of the run, for tables.
  """

  directory: pathlib.Path
  config: RunConfig
  step: int
  defender: Defender
  attack: Attack | None
  variables: TriggerVariables
  splits: Splits
  triggered: TriggeredSet | None = None

  @property
  def name(self) -> str:
    """The run's name, with its group's."""
    if self.directory.name.startswith("seed-"):
      return f"{self.directory.resolve().parent.name}/{self.directory.name}"
    return self.directory.name

  @property
  def original(self) -> Original:
    """The network before a defence, with the roles of its training set."""
    poisoned = self.poisoned()
    return Original(
      self.defender.model,
      self.defender.weights,
      self.splits.info.num_classes,
      None if poisoned is None else poisoned.roles,
    )

  def identity(self) -> dict[str, Any]:
    """Tell which network this is: a retrained one has another checksum."""
    return {"step": self.step, "weights_crc32": checksum(self.defender.weights)}

  def with_key(self, key: jax.Array) -> "TrainedRun":
    """Return the run with another key for what a defence draws."""
    return self._replace(defender=self.defender._replace(key=key))

  def evaluator(
    self, key: jax.Array, limit: int | None = None
  ) -> HeldOutEvaluator:
    """Return the evaluator that scores a defence on held-out images.

    Args:
      key: of the images drawn and their triggers.
      limit: test images, at most.
    """
    return HeldOutEvaluator(
      self.splits.test,
      self.defender.mesh,
      key,
      attack=self.attack,
      variables=self.variables,
      triggered=self.triggered,
      limit=limit,
    )

  def poisoned(self) -> PoisonedSet | None:
    """Return the poisoned training set; None where batches were poisoned."""
    if self.attack is None or self.config.settings.poison != "dataset":
      return None
    setup = build(self.config, self.splits, self.defender.model)
    keys = make_keys(self.config.seed)
    return poisoned_set(setup, self.splits.train, keys, self.variables)

  def training_defender(self) -> TrainingDefender:
    """Return what a defence sees that inspects the training set.

    Raises:
      UserError: the run poisons batches, and leaves no poisoned set.
    """
    if self.attack is not None and self.config.settings.poison != "dataset":
      raise UserError(
        f"poison must be dataset for this defence ({self.name} poisons batches "
        "and leaves no poisoned set)"
      )
    poisoned = self.poisoned()
    images, labels = self.splits.train
    if poisoned is not None:
      images, labels = poisoned.images, poisoned.labels
    return TrainingDefender(self.defender, images, labels)


def checksum(weights: Weights) -> int:
  """Return the CRC-32 of all the numbers of a network."""
  crc = 0
  for leaf in jax.tree.leaves(jax.device_get(weights)):
    crc = zlib.crc32(np.ascontiguousarray(leaf).tobytes(), crc)
  return crc
