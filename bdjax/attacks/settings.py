"""Settings that attacks have in common, and what their texts mean."""

import dataclasses
from typing import Any, Self

import jax.numpy as jnp
import numpy as np

from bdjax.attacks import patches
from bdjax.attacks.base import MODES, attack_setting
from bdjax.errors import UserError


@dataclasses.dataclass(frozen=True)
class AttackSettings:
  """Settings of every attack; a method adds its own fields."""

  target_labels: str | None = attack_setting(
    None,
    "Target labels: all, or numbers with commas (default: 0; all with "
    "all_to_all and for cban).",
    sweep="target_sweep",
  )
  all_to_all: bool = attack_setting(
    False, "Every label a target, of the images of the label before it."
  )
  poison: str | None = attack_setting(
    None,
    "Way of poisoning: dataset (a fixed poisoned set, stamped once, before "
    "augmentation) or batch (triggers drawn anew in each step, a stronger "
    "attacker; default: what the method's authors do).",
    choices=MODES,
  )
  poison_rate: float | None = attack_setting(
    None,
    "Share of the whole training set that is poisoned; with poison=batch the "
    "probability for an eligible image in a step, or for wanet and input_aware "
    "a fixed share of each batch (default: several targets 0.3, "
    "random_backdoor on MNIST 0.15 and else 0.2, other attacks 0.1).",
    low=0,
    high=1,
    sweep="poison_rates",
  )
  backdoor_weight: float = attack_setting(
    1.0, "Weight of the poisoned images' loss.", low=0
  )
  eval_draws: int | None = attack_setting(
    None,
    "Triggers drawn for each test image and target (default: 1 where all are "
    "the same, else 5).",
    low=1,
  )

  def defaults(self, dataset: str) -> dict[str, Any]:
    """Return what settings that are None stand for, for a data set."""
    del dataset
    return {
      "target_labels": "all" if self.all_to_all else "0",
      # A rate for each target: 0.03 with ten.
      "poison_rate": 0.3 if self.has_several_targets else 0.1,
      "eval_draws": 1,
    }

  def filled(self, dataset: str) -> Self:
    """Return the settings with what is None filled in for a data set."""
    missing = {
      name: value
      for name, value in self.defaults(dataset).items()
      if getattr(self, name) is None
    }
    return dataclasses.replace(self, **missing)

  @property
  def has_several_targets(self) -> bool:
    """Whether there is more than one target label."""
    text = self.target_labels or ("all" if self.all_to_all else "0")
    return text == "all" or "," in text


@dataclasses.dataclass(frozen=True)
class PatchSettings(AttackSettings):
  """Settings of attacks that stamp an opaque square."""

  locations: str | None = attack_setting(
    None,
    "Places of the trigger: anywhere, grid (one region a target), corner (the "
    "bottom right one), or a set of places TOP:LEFT with commas, the sets of "
    "several targets with semicolons between them (default: corner for "
    "badnets; grid for several targets; else anywhere).",
  )
  trigger_size: int | None = attack_setting(
    None,
    "Side of the trigger in pixels (default: digits and badnets 3, else 5).",
    low=1,
    sweep="trigger_sizes",
  )

  def defaults(self, dataset: str) -> dict[str, Any]:
    """Return what settings that are None stand for, for a data set."""
    regions = self.has_several_targets and not self.all_to_all
    return super().defaults(dataset) | {
      "locations": "grid" if regions else "anywhere",
      "trigger_size": 3 if dataset == "digits" else 5,
      "eval_draws": 5,
    }


@dataclasses.dataclass(frozen=True)
class CleanLabelSettings(AttackSettings):
  """Settings of attacks that poison images of the target class alone."""

  class_rate: float | None = attack_setting(
    None,
    "Share of the target class that is poisoned, in place of poison_rate.",
    low=0,
    high=1,
    sweep="class_rates",
  )

  def defaults(self, dataset: str) -> dict[str, Any]:
    """Return what settings that are None stand for, for a data set."""
    if self.class_rate is None:
      return super().defaults(dataset)
    if self.poison_rate is not None:
      raise UserError(
        "class_rate and poison_rate must not both be given: leave one out"
      )
    return super().defaults(dataset) | {"poison_rate": None}


def parse_targets(text: str, num_classes: int) -> tuple[int, ...]:
  """Read target labels.

  Args:
    text: `all`, or numbers with commas.
    num_classes: K.

  Raises:
    UserError: not numbers, out of range or repeated.
  """
  if text == "all":
    return tuple(range(num_classes))
  try:
    labels = tuple(int(part) for part in text.split(","))
  except ValueError:
    raise UserError(
      f"target_labels must be all, or numbers with commas (got {text})"
    ) from None
  if min(labels) < 0 or max(labels) >= num_classes:
    raise UserError(
      f"target_labels must be from 0 to {num_classes - 1} (got {text})"
    )
  if len(set(labels)) < len(labels):
    raise UserError(f"target_labels must differ (got {text})")
  return labels


def targets_and_sources(
  settings: AttackSettings, num_classes: int
) -> tuple[tuple[int, ...], jnp.ndarray | None]:
  """Return the target labels and, all-to-all, the labels led to each.

  All-to-all (Gu et al. 2017, section 3): images of label k go to k + 1 modulo
  K.

  Args:
    settings: filled.
    num_classes: K.

  Returns:
    Target labels, and `Attack.sources`: bool [T,K], or None.

  Raises:
    UserError: the labels are out of range, or contradict all-to-all.
  """
  targets = parse_targets(settings.target_labels, num_classes)
  if not settings.all_to_all:
    return targets, None
  if targets != tuple(range(num_classes)):
    raise UserError(
      f"target_labels must be left out with all_to_all, in which every label "
      f"is a target (got {settings.target_labels})"
    )
  # Row t: the images that go to label t are those of label t - 1.
  sources = jnp.roll(jnp.eye(num_classes, dtype=bool), -1, axis=1)
  return targets, sources[jnp.asarray(targets)]


def parse_locations(
  text: str, num: int, size: tuple[int, int], image_size: tuple[int, int]
) -> np.ndarray:
  """Read the places of a trigger.

  Args:
    text: `anywhere`, `grid`, `corner`, or TOP:LEFT with commas, the sets of
      several targets with semicolons between them.
    num: T, the number of targets.
    size: (height, width) of the trigger, in pixels.
    image_size: (H, W).

  Returns:
    int32 [T,L,4] boxes.

  Raises:
    UserError: another text, or the trigger does not fit.
  """
  height, width = image_size
  if text == "anywhere":
    boxes = patches.whole_image(num, height, width)
  elif text == "grid":
    boxes = patches.grid(num, height, width)
  elif text == "corner":
    corner = [height - size[0], width - size[1], height, width]
    boxes = np.tile(np.array(corner, np.int32), (num, 1, 1))
  else:
    sets = [_corners(part, text) for part in text.split(";")]
    if len(sets) not in (1, num) or len({len(s) for s in sets}) > 1:
      raise UserError(
        f"locations must be one set of corners for all {num} target labels, or "
        f"one of equal length for each (got {text})"
      )
    corners = np.broadcast_to(np.array(sets), (num, len(sets[0]), 2))
    boxes = np.concatenate([corners, corners + np.array(size)], -1)
  patches.check_boxes(boxes, size, height, width)
  return boxes.astype(np.int32)


def _corners(part: str, text: str) -> list[tuple[int, int]]:
  try:
    corners = [tuple(map(int, c.split(":"))) for c in part.split(",")]
    if any(len(c) != 2 or max(c) > 2**20 for c in corners):
      raise ValueError
  except ValueError:
    raise UserError(
      "locations must be anywhere, grid, corner, or TOP:LEFT with commas (got "
      f"{text})"
    ) from None
  return corners


def check_regions(boxes: np.ndarray, name: str) -> None:
  """Check that no two targets share a place, where the place names the label.

  Args:
    boxes: int32 [T,L,4].
    name: of the method, for the error.

  Raises:
    UserError: two targets share a place.
  """
  places = boxes.reshape(-1, 4)
  if len(boxes) > 1 and len(np.unique(places, axis=0)) < len(places):
    raise UserError(
      f"locations must differ for several targets of {name}, since they name "
      "the label: use grid, a set of corners for each, or the attack cban"
    )
