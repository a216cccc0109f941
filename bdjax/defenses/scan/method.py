"""A scan as one call: is a network backdoored, among very many classes.

The classes share the steps as in K-Arm, a random sample of them is searched to
the end, and the smallest masks are compared with that. A few clean images a
class are enough, a handful in all gives a first answer. What no mask on the
image can bring about, a scan cannot find.

References:
  Wang et al. (2019), Neural Cleanse: Identifying and Mitigating Backdoor
  Attacks in Neural Networks.
  Shen et al. (2021), Backdoor Scanning for Deep Neural Networks through K-Arm
  Optimization.
"""

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from bdjax.attacks.patches import Trigger
from bdjax.defenses import k_arm
from bdjax.defenses.base import checkpoint_path
from bdjax.defenses.neural_cleanse import searches
from bdjax.defenses.scan import report
from bdjax.defenses.scan.search import (
  ScanImages,
  score_triggers,
  search,
  split_images,
)
from bdjax.defenses.scan.settings import ScanSettings
from bdjax.defenses.scan.verdicts import Judged, judge
from bdjax.errors import UserError
from bdjax.models import Model, Weights
from bdjax.settings import check


class ScanResult(NamedTuple):
  """The outcome of a scan of K classes.

  Attributes:
    judged: the verdicts, a row a class.
    sentences: the verdicts in words, and what they cannot tell.
    searches: triggers and norms of all K searches.
    converged: bool [K], searched to the end, with success.
    reference: bool [K], the random sample.
    measured: the classes accused and the number of steps, JSON-ready.
    details: the rest, JSON-ready, with the rows of `judged` as `classes`.
    seconds: of the search.
  """

  judged: Judged
  sentences: list[str]
  searches: searches.ReverseEngineered
  converged: np.ndarray
  reference: np.ndarray
  measured: dict[str, Any]
  details: dict[str, Any]
  seconds: float

  def trigger_arrays(self) -> dict[str, np.ndarray]:
    """Return the triggers of converged classes, the smallest mask first.

    Returns:
      classes int32 [T], masks float32 [T,H,W,1], patterns float32 [T,H,W,C]
      and norms float32 [T].
    """
    classes = [row["class"] for row in self.judged.rows]
    rows = np.array([k for k in classes if self.converged[k]], np.int32)
    return {
      "classes": rows,
      "masks": self.searches.masks[rows],
      "patterns": self.searches.patterns[rows],
      "norms": self.searches.norms[rows],
    }


def scan(
  model: Model,
  weights: Weights,
  images: np.ndarray,
  labels: np.ndarray | None,
  class_names: Sequence[str],
  settings: ScanSettings,
  mesh: jax.sharding.Mesh,
  directory: pathlib.Path | None = None,
) -> ScanResult:
  """Scan a network for backdoored classes.

  Args:
    model: the classifier; takes images in [0,1].
    weights: of the classifier.
    images: uint8 [N,H,W,C], clean, at least one; on the host.
    labels: int32 [N], the true ones; None where they are not known.
    class_names: of the K classes.
    settings: of the scan.
    mesh: the classes of a round are spread over it.
    directory: where `checkpoints/search` goes, from which an interrupted scan
      with the same arguments is resumed, with the same results; None keeps
      nothing. It may take most of a gigabyte, for the caller to remove.

  Raises:
    UserError: there are fewer than 3 classes or no images, or a setting is out
      of range.
  """
  num = len(class_names)
  check(settings)
  _check_inputs(images, labels, num)
  split = split_images(images, settings.augmentations, settings.seed)
  reference_key, *keys = jax.random.split(jax.random.key(settings.seed), 3)
  reference = k_arm.draw_reference(reference_key, num, settings.reference)
  path = checkpoint_path(directory, "search")
  state, seconds = search(
    tuple(keys), model, weights, split.search, reference, settings, mesh, path
  )
  found = searches.finish(state.searches)
  frozen = state.searches.frozen
  converged = frozen & found.reached
  triggers = Trigger(found.masks, found.patterns)
  held_out = score_triggers(
    model, weights, split, labels, triggers, np.flatnonzero(converged)
  )
  judged = judge(
    found, frozen, reference, held_out, class_names, settings.threshold
  )
  return ScanResult(
    judged,
    report.sentences(
      judged, num, int(reference.sum()), len(split.rows), settings.threshold
    ),
    found,
    converged,
    reference,
    _measured(judged, found, reference),
    _details(judged, state, reference, split, settings),
    seconds,
  )


def _check_inputs(images, labels, num):
  if num < 3:
    raise UserError(f"a scan needs at least 3 classes (got {num})")
  if not len(images):
    raise UserError("images must not be empty")
  if labels is not None and len(labels) != len(images):
    raise UserError(
      f"labels must be as many as images, {len(images)} (got {len(labels)})"
    )


def _measured(
  judged: Judged, found: searches.ReverseEngineered, reference: np.ndarray
) -> dict[str, Any]:
  """Count the steps against a search of all classes to the end."""
  steps = int(found.steps.sum())
  of_all = float(found.steps[reference].mean()) * len(reference)
  return {
    "backdoored": judged.labels("backdoored"),
    "suspect": judged.labels("suspect"),
    "steps": steps,
    "steps_of_all": of_all,
    "steps_saved": 0.0 if reference.all() else max(0.0, 1 - steps / of_all),
  }


def _details(
  judged: Judged,
  state: k_arm.BanditState,
  reference: np.ndarray,
  images: ScanImages,
  settings: ScanSettings,
) -> dict[str, Any]:
  """Collect what a reader of the results may ask for, JSON-ready."""
  bandit = dataclasses.fields(k_arm.BanditSettings)
  return {
    "classes": judged.rows,
    "threshold": settings.threshold,
    "log_threshold": judged.threshold,
    "reference": np.flatnonzero(reference).tolist(),
    "held_out": images.rows.tolist(),
    "search_images": len(images.search),
    "rounds": int(state.round_number),
    "bandit_rounds": int(state.bandit_rounds),
    "bandit": {field.name: getattr(settings, field.name) for field in bandit},
  }
