"""The held-out evaluator: test images that no defence sees."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from bdjax import metrics, sharding
from bdjax.attacks.base import Attack, TriggerVariables
from bdjax.batching import map_in_chunks, over_images, predictions
from bdjax.data import Dataset
from bdjax.errors import UserError
from bdjax.evaluation.predictions import over_triggered
from bdjax.models import Model, Weights

BATCH_SIZE = 250  # images; half a chunk


class TriggeredSet(NamedTuple):
  """Test images that came with their triggers on, made elsewhere.

  Attributes:
    images: uint8 [M,H,W,C].
    targets: int32 [M], the target labels; the true ones are not known.
    trigger: int32 [M] into `names`.
    names: of the triggers.
  """

  images: np.ndarray
  targets: np.ndarray
  trigger: np.ndarray
  names: tuple[str, ...]


class TriggeredOutputs(NamedTuple):
  """Outputs of a function for triggered test images.

  Attributes:
    outputs: a tree of [M,...], of the images that count.
    labels: int32 [M], the true ones; -1 where they are not known.
    targets: int32 [M], the target labels.
  """

  outputs: Any
  labels: np.ndarray
  targets: np.ndarray


class HeldOutEvaluator:
  """The test set and the attack that score a defence.

  Every test image is triggered once, towards a target drawn from those that it
  may have, and with a trigger drawn anew. Where triggered images are given
  instead, they are used as they are, all of them: their true labels are not
  known, so none can be left out for being the target already.
  """

  def __init__(
    self,
    test: Dataset,
    mesh: jax.sharding.Mesh,
    key: jax.Array,
    *,
    attack: Attack | None = None,
    variables: TriggerVariables | None = None,
    triggered: TriggeredSet | None = None,
    limit: int | None = None,
  ):
    """Draw up to `limit` test images.

    Args:
      test: images uint8 [N,H,W,C] and labels.
      mesh: the devices.
      key: of the draw, the triggers and what a defence draws for an image.
      attack: None for a clean network, or with `triggered`.
      variables: of the attack.
      triggered: images that have their triggers already.
      limit: None for all test images.
    """
    order_key, self._key = jax.random.split(key)
    rows = _draw(order_key, len(test.labels), limit)
    self.labels = test.labels[rows]
    self.mesh = mesh
    self.images, self._device_labels = sharding.replicate(
      mesh, (test.images[rows], self.labels)
    )
    self._attack = attack
    self._variables = variables or TriggerVariables({}, {})
    self._given = _limited(triggered, order_key, limit)
    if self._given:
      self._given_images = sharding.replicate(mesh, self._given.images)
    self._programs: dict[tuple, Callable] = {}
    self._predictors: dict[Callable, Callable] = {}  # by `Model.apply`

  @property
  def has_attack(self) -> bool:
    """Whether the network has a known backdoor."""
    return bool(self._attack or self._given)

  @property
  def targets(self) -> list[int]:
    """The attack's target labels; none of a clean network."""
    if self._given:
      return np.unique(self._given.targets).tolist()
    return np.asarray(self._attack.targets).tolist() if self._attack else []

  @property
  def knows_labels(self) -> bool:
    """Whether the true labels of triggered images are known."""
    return self._attack is not None

  def on_clean(
    self, function: Callable, args: Any, batch_size: int | None = None
  ) -> Any:
    """Apply a function to the clean test images.

    Args:
      function: `(args, key, images f32 [B,H,W,C]) -> tree of [B,...]`.
      args: goes to the function.
      batch_size: B.

    Returns:
      The tree, of [N,...].
    """
    clean_key, _ = jax.random.split(self._key)
    run = self._compiled(function, batch_size, triggered=False)
    return map_in_chunks(
      lambda key, rows: run(args, key, self.images[rows]),
      clean_key,
      len(self.labels),
    )

  def on_triggered(
    self, function: Callable, args: Any, batch_size: int | None = None
  ) -> TriggeredOutputs:
    """Apply a function to the triggered images of a network with an attack.

    Args: as of `on_clean`.

    Raises:
      UserError: none of the images drawn can be triggered.
    """
    _, triggered_key = jax.random.split(self._key)
    if self._given:
      run = self._compiled(function, batch_size, triggered=False)
      out = map_in_chunks(
        lambda key, rows: run(args, key, self._given_images[rows]),
        triggered_key,
        len(self._given.targets),
      )
      unknown = np.full_like(self._given.targets, -1)
      return TriggeredOutputs(out, unknown, self._given.targets)
    run = self._compiled(function, batch_size, triggered=True)
    out, targets, counts = map_in_chunks(
      lambda key, rows: run(
        args,
        self._variables,
        key,
        self.images[rows],
        self._device_labels[rows],
      ),
      triggered_key,
      len(self.labels),
    )
    if not counts.any():
      raise UserError(
        "eval_images must be larger: none of those drawn can be triggered"
      )
    return TriggeredOutputs(
      jax.tree.map(lambda x: x[counts], out),
      self.labels[counts],
      targets[counts],
    )

  def scores(
    self, model: Model, weights: Weights, batch_size: int | None = None
  ) -> dict[str, metrics.Score]:
    """Score clean accuracy, and with an attack ASR and robust accuracy."""
    predict = self._predictors.setdefault(model.apply, predictions(model))
    labels = self.on_clean(predict, weights, batch_size)
    out = {"clean_accuracy": share(labels == self.labels)}
    if self.has_attack:
      triggered = self.on_triggered(predict, weights, batch_size)
      hits = triggered.outputs == triggered.targets
      out |= self.shares("attack_success_rate", hits)
      if self.knows_labels:
        out["robust_accuracy"] = share(triggered.outputs == triggered.labels)
    return out

  def shares(self, name: str, hits: np.ndarray) -> dict[str, metrics.Score]:
    """Score the share of triggered images for which something is true.

    Args:
      name: of the score.
      hits: bool [M], in the order of `on_triggered`.

    Returns:
      The share by its name, with Wilson's interval; where images with several
      triggers were given, that of each trigger besides, by `NAME_TRIGGER`.
    """
    out = {name: share(hits)}
    if self._given and len(self._given.names) > 1:
      for number, trigger in enumerate(self._given.names):
        of_trigger = hits[self._given.trigger == number]
        if len(of_trigger):
          out[f"{name}_{trigger}"] = share(of_trigger)
    return out

  def _compiled(self, function, batch_size, triggered) -> Callable:
    """Compile once for each function, however many weights go through it."""
    batch_size = batch_size or BATCH_SIZE
    key = function, batch_size, triggered
    if key not in self._programs:
      even = -(-batch_size // self.mesh.size) * self.mesh.size
      if triggered:
        program = over_triggered(function, self._attack, even, self.mesh)
      else:
        program = over_images(function, even, self.mesh)
      self._programs[key] = program
    return self._programs[key]


def _draw(key, total: int, limit: int | None) -> np.ndarray:
  """Draw row numbers in ascending order, `limit` if there are so many."""
  order = np.asarray(jax.random.permutation(key, total))
  return np.sort(order[:limit])


def _limited(triggered, key, limit) -> TriggeredSet | None:
  if triggered is None:
    return None
  rows = _draw(key, len(triggered.targets), limit)
  return triggered._replace(
    images=triggered.images[rows],
    targets=triggered.targets[rows],
    trigger=triggered.trigger[rows],
  )


def share(hits: np.ndarray) -> metrics.Score:
  """Score the share of true values in bool [N], with Wilson's interval."""
  return metrics.proportion(float(hits.mean()), len(hits))
