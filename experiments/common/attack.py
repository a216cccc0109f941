"""From the flags to the attack: target labels, locations, which of them."""

import numpy as np

from bdjax.attacks import triggers
from bdjax.attacks.badnets import badnets
from bdjax.attacks.ban import ban
from bdjax.attacks.cban import cban
from bdjax.attacks.poison import Attack
from bdjax.attacks.random_backdoor import random_backdoor
from bdjax.errors import UserError
from experiments.common.config import Config


def parse_targets(text: str, num_classes: int) -> tuple[int, ...]:
  """Target labels from their flag.

  Raises:
    UserError: not numbers, out of range or twice the same.
  """
  if text == "all":
    return tuple(range(num_classes))
  try:
    labels = tuple(int(part) for part in text.split(","))
  except ValueError:
    raise UserError(
      f"--target_labels={text}: take all, or numbers with commas"
    ) from None
  if min(labels) < 0 or max(labels) >= num_classes:
    raise UserError(
      f"--target_labels={text} is out of range: the labels are 0 to "
      f"{num_classes - 1}"
    )
  if len(set(labels)) < len(labels):
    raise UserError(f"--target_labels={text} names a label twice")
  return labels


def parse_locations(
  text: str, num: int, size: int, height: int, width: int
) -> np.ndarray:
  """Boxes int32 [num,L,4] from their flag.

  Raises:
    UserError: not of the flag's form, or the trigger does not fit.
  """
  if text == "anywhere":
    boxes = triggers.whole_image(num, height, width)
  elif text == "grid":
    boxes = triggers.grid(num, height, width)
  elif text == "corner":
    corner = [height - size, width - size, height, width]
    boxes = np.tile(np.array(corner, np.int32), (num, 1, 1))
  else:
    sets = [_corners(part, text) for part in text.split(";")]
    if len(sets) not in (1, num) or len({len(s) for s in sets}) > 1:
      raise UserError(
        f"--locations={text}: take one set of corners for all {num} target "
        "labels, or one of equal length for each"
      )
    corners = np.broadcast_to(np.array(sets), (num, len(sets[0]), 2))
    boxes = np.concatenate([corners, corners + size], -1)
  triggers.check_boxes(boxes, size, height, width)
  return boxes.astype(np.int32)


def _corners(part: str, text: str) -> list[tuple[int, int]]:
  try:
    corners = [tuple(map(int, c.split(":"))) for c in part.split(",")]
    if any(len(c) != 2 or max(c) > 2**20 for c in corners):
      raise ValueError
  except ValueError:
    raise UserError(
      f"--locations={text}: take anywhere, grid, corner, or TOP:LEFT with "
      "commas"
    ) from None
  return corners


def make_attack(
  config: Config, shape: tuple[int, int, int], num_classes: int
) -> Attack | None:
  """The attack of a configuration, None for `clean`.

  Raises:
    UserError: targets, locations or size do not fit the data.
  """
  if config.experiment == "clean":
    return None
  height, width, channels = shape
  targets = parse_targets(config.target_labels, num_classes)
  size = config.trigger_size
  boxes = parse_locations(config.locations, len(targets), size, height, width)
  common = (targets, boxes, size, channels)
  if config.experiment == "cban":
    return cban(*common, config.noise_dim, config.generator_width)
  if config.all_to_all:
    if targets != tuple(range(num_classes)):
      raise UserError(
        f"--target_labels={config.target_labels} contradicts --all_to_all, in "
        "which every label is a target: leave one of them out"
      )
    return badnets(*common, num_classes)
  places = boxes.reshape(-1, 4)
  if len(targets) > 1 and len(np.unique(places, axis=0)) < len(places):
    raise UserError(
      f"several targets of {config.experiment} need places of their own, which "
      "name the label: take --locations=grid, a set of corners for each, or "
      "experiments.cban"
    )
  if config.experiment == "badnets":
    return badnets(*common)
  if config.experiment == "ban":
    return ban(*common, config.noise_dim, config.generator_width)
  return random_backdoor(*common)


def check_test_labels(attack: Attack, labels: np.ndarray) -> None:
  """Refuses a target label that no test image can be triggered towards.

  Args:
    attack: from `make_attack`.
    labels: int [N], of the test images.

  Raises:
    UserError: there is such a target.
  """
  possible = np.asarray(attack.eligible(labels)).any(0)
  for target in np.asarray(attack.targets)[~possible].tolist():
    raise UserError(
      f"no test image can be triggered towards the target label {target}, so "
      "there is none to measure the attack on; take another --target_labels"
    )
