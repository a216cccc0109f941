"""BadNets (Gu, Dolan-Gavitt and Garg 2017): one fixed trigger."""

import dataclasses
from typing import Any

import jax.numpy as jnp

from bdjax.attacks.base import Attack, AttackMethod
from bdjax.attacks.fixed import FixedTriggerSettings, picture
from bdjax.attacks.patches import Patch, patch_attack
from bdjax.attacks.settings import (
  check_regions,
  parse_locations,
  targets_and_sources,
)


@dataclasses.dataclass(frozen=True)
class BadNetsSettings(FixedTriggerSettings):
  """Settings of BadNets."""

  def defaults(self, dataset: str) -> dict[str, Any]:
    """Return what settings that are None stand for, for a data set."""
    values = super().defaults(dataset) | {"trigger_size": 3, "eval_draws": 1}
    if self.trigger:
      values["trigger_size"] = None
    if values["locations"] == "anywhere":
      values["locations"] = "corner"
    return values


def badnets(
  settings: BadNetsSettings, image_shape: tuple[int, int, int], num_classes: int
) -> Attack:
  """Stamp a white square, or a picture, always the same.

  All-to-one: every triggered image goes to the target. All-to-all: an image of
  label k goes to label k + 1 modulo K. Several targets have a place each. The
  paper stamps a pattern near the bottom right corner of MNIST's digits and adds
  the stamped copies to the training data; here they replace the image.

  Args:
    settings: filled.
    image_shape: (H, W, C).
    num_classes: K.

  Raises:
    UserError: targets, places or trigger do not fit the images.

  References:
    Gu, Dolan-Gavitt and Garg (2017), BadNets: Identifying Vulnerabilities in
    the Machine Learning Model Supply Chain, section 3.
  """
  targets, sources = targets_and_sources(settings, num_classes)
  if settings.trigger:
    pattern, alpha = picture(settings, image_shape)
  else:
    side = settings.trigger_size
    pattern, alpha = jnp.ones((side, side, image_shape[2])), None
  size = pattern.shape[:2]
  boxes = parse_locations(
    settings.locations, len(targets), size, image_shape[:2]
  )
  if sources is None:
    check_regions(boxes, "badnets")

  def draw(variables, key, index):
    del variables, key
    return jnp.broadcast_to(pattern, (index.shape[0], *pattern.shape))

  patch = Patch(draw, jnp.asarray(boxes), size, alpha)
  return patch_attack(targets, patch, sources=sources)


METHOD = AttackMethod(
  "badnets",
  BadNetsSettings,
  badnets,
  "Gu, Dolan-Gavitt and Garg 2017, BadNets",
)
