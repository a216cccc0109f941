"""Scores a defence on test images, which it never sees itself."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from bdjax import evaluation, metrics, sharding
from bdjax.errors import UserError
from bdjax.models import Model, Weights
from experiments.defending.pieces import in_pieces
from experiments.defending.subject import Given, Subject

BATCH = 250  # images; half a piece


class Triggered(NamedTuple):
  """What a function says of the test images with triggers on them.

  Attributes:
    outputs: a tree of [M,...], of the images that count.
    labels: int32 [M], the true ones; -1 where they are not known.
    targets: int32 [M], what the triggers are to bring about.
  """

  outputs: Any
  labels: np.ndarray
  targets: np.ndarray


class Exam:
  """The test set of a run, and its attack.

  Every test image is triggered once, towards a target drawn from those that
  it may have, and with a trigger drawn anew. Where triggered images are
  given instead, they are taken as they are, all of them: their true labels
  are not known, so none can be left out for being the target already.
  """

  def __init__(
    self, subject: Subject, key: jax.Array, limit: int | None = None
  ):
    """Takes the first `limit` test images, in an order drawn from `key`."""
    test = subject.splits.test
    order_key, self._key = jax.random.split(key)
    rows = _draw(order_key, len(test.labels), limit)
    self.labels = test.labels[rows]
    self._mesh = subject.defender.mesh
    self._images, self._device_labels = sharding.replicate(
      self._mesh, (test.images[rows], self.labels)
    )
    self._attack, self._generator = subject.attack, subject.generator
    self._given = _limited(subject.given, order_key, limit)
    if self._given:
      self._given_images = sharding.replicate(self._mesh, self._given.images)
    self._programs: dict[tuple, Callable] = {}
    self._predictors: dict[Model, Callable] = {}
    # What the run is, for published figures to stand beside ours.
    self.experiment = subject.config.experiment
    self.dataset = subject.splits.info.name

  @property
  def has_attack(self) -> bool:
    """Whether the run has a known backdoor."""
    return bool(self._attack or self._given)

  @property
  def targets(self) -> list[int]:
    """The attack's target labels; none in a clean run."""
    if self._given:
      return np.unique(self._given.targets).tolist()
    return np.asarray(self._attack.targets).tolist() if self._attack else []

  @property
  def knows_labels(self) -> bool:
    """Whether the true labels of triggered images are known."""
    return self._attack is not None

  def clean(
    self, function: Callable, args: Any, batch_size: int = BATCH
  ) -> Any:
    """What a function says of the clean test images: a tree of [N,...].

    Args:
      function: `(args, key, images f32 [B,H,W,C]) -> tree of [B,...]`.
      args: goes to the function.
      batch_size: B.
    """
    clean_key, _ = jax.random.split(self._key)
    run = self._compiled(function, batch_size, triggered=False)
    return in_pieces(
      lambda key, rows: run(args, key, self._images[rows]),
      clean_key,
      len(self.labels),
    )

  def triggered(
    self, function: Callable, args: Any, batch_size: int = BATCH
  ) -> Triggered:
    """The same for the triggered images, in a run that has an attack."""
    _, triggered_key = jax.random.split(self._key)
    if self._given:
      run = self._compiled(function, batch_size, triggered=False)
      out = in_pieces(
        lambda key, rows: run(args, key, self._given_images[rows]),
        triggered_key,
        len(self._given.targets),
      )
      unknown = np.full_like(self._given.targets, -1)
      return Triggered(out, unknown, self._given.targets)
    run = self._compiled(function, batch_size, triggered=True)
    out, targets, counts = in_pieces(
      lambda key, rows: run(
        args,
        self._generator,
        key,
        self._images[rows],
        self._device_labels[rows],
      ),
      triggered_key,
      len(self.labels),
    )
    if not counts.any():
      raise UserError(
        "none of the test images drawn can be triggered: raise --eval_images"
      )
    return Triggered(
      jax.tree.map(lambda x: x[counts], out),
      self.labels[counts],
      targets[counts],
    )

  def scores(
    self, model: Model, weights: Weights, batch_size: int = BATCH
  ) -> dict[str, metrics.Score]:
    """Clean accuracy, and with an attack ASR and robust accuracy."""
    predict = self._predictors.setdefault(model, _predictor(model))
    predictions = self.clean(predict, weights, batch_size)
    out = {"clean_accuracy": share_of(predictions == self.labels)}
    if self.has_attack:
      found = self.triggered(predict, weights, batch_size)
      hits = found.outputs == found.targets
      out |= self.shares("attack_success_rate", hits)
      if self.knows_labels:
        out["robust_accuracy"] = share_of(found.outputs == found.labels)
    return out

  def shares(self, name: str, hits: np.ndarray) -> dict[str, metrics.Score]:
    """The share of triggered images that something is true of.

    Args:
      name: of the score.
      hits: bool [M], in the order of `triggered`.

    Returns:
      The share by its name, with Wilson's interval; where images with several
      triggers were given, that of each trigger besides, by `NAME_TRIGGER`.
    """
    out = {name: share_of(hits)}
    if self._given and len(self._given.names) > 1:
      for number, trigger in enumerate(self._given.names):
        of_it = hits[self._given.trigger == number]
        if len(of_it):
          out[f"{name}_{trigger}"] = share_of(of_it)
    return out

  def _compiled(self, function, batch_size, triggered) -> Callable:
    """Compiled once for each function, however many weights go through it."""
    key = function, batch_size, triggered
    if key not in self._programs:
      even = -(-batch_size // self._mesh.size) * self._mesh.size
      if triggered:
        program = evaluation.over_triggered(
          function, self._attack, even, self._mesh
        )
      else:
        program = evaluation.over_images(function, even, self._mesh)
      self._programs[key] = program
    return self._programs[key]


def _draw(key, total: int, limit: int | None) -> np.ndarray:
  """Row numbers in ascending order, `limit` of them if there are so many."""
  order = np.asarray(jax.random.permutation(key, total))
  return np.sort(order[:limit])


def _limited(given: Given | None, key, limit: int | None) -> Given | None:
  if given is None:
    return None
  rows = _draw(key, len(given.targets), limit)
  return given._replace(
    images=given.images[rows],
    targets=given.targets[rows],
    trigger=given.trigger[rows],
  )


def _predictor(model: Model) -> Callable:
  """Predictions as a function for `Exam.clean`."""

  def predict(weights, key, images):
    del key
    return model.apply(*weights, images, False)[0].argmax(-1)

  return predict


def share_of(hits: np.ndarray) -> metrics.Score:
  """The share of true values in bool [N], with Wilson's interval."""
  return metrics.proportion(float(hits.mean()), len(hits))
