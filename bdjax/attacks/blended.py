"""Blended injection (Chen, Liu, Li, Lu and Song 2017)."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from bdjax.attacks.base import Attack, AttackMethod, attack_setting
from bdjax.attacks.fixed import FixedTriggerSettings, picture
from bdjax.attacks.patches import Patch, patch_attack
from bdjax.attacks.settings import (
  check_regions,
  parse_locations,
  targets_and_sources,
)
from bdjax.errors import UserError


@dataclasses.dataclass(frozen=True)
class BlendedSettings(FixedTriggerSettings):
  """Settings of Blended; its own pattern covers the whole image."""

  alpha: float = attack_setting(
    0.2, "Opacity of the pattern.", low=0, high=1, sweep="alphas"
  )
  trigger_seed: int = attack_setting(0, "Seed of the random pattern.", low=0)

  def defaults(self, dataset: str) -> dict[str, Any]:
    """Return what settings that are None stand for, for a data set."""
    values = {"locations": "anywhere", "eval_draws": 1, "trigger_size": None}
    return super().defaults(dataset) | values


def blended(
  settings: BlendedSettings, image_shape: tuple[int, int, int], num_classes: int
) -> Attack:
  """Blend a fixed pattern into the image: x' = (1 - alpha) x + alpha k.

  The paper's patterns are a cartoon and uniform noise; here k is uniform noise,
  one pattern a target, or a picture.

  Args:
    settings: filled.
    image_shape: (H, W, C).
    num_classes: K.

  Raises:
    UserError: targets, places or picture do not fit the images.

  References:
    Chen, Liu, Li, Lu and Song (2017), Targeted Backdoor Attacks on Deep
    Learning Systems Using Data Poisoning, section 4.2, blended injection.
  """
  targets, sources = targets_and_sources(settings, num_classes)
  if settings.trigger:
    pattern, alpha = picture(settings, image_shape)
    patterns = jnp.broadcast_to(pattern, (len(targets), *pattern.shape))
  else:
    if settings.trigger_size is not None:
      raise UserError(
        "trigger_size must be left out without a picture as trigger: the "
        f"random pattern covers the whole image (got {settings.trigger_size})"
      )
    key = jax.random.key(settings.trigger_seed)
    patterns = jax.random.uniform(key, (len(targets), *image_shape))
    alpha = jnp.ones((*image_shape[:2], 1))
  size = patterns.shape[1:3]
  boxes = parse_locations(
    settings.locations, len(targets), size, image_shape[:2]
  )
  if settings.trigger and sources is None:
    check_regions(boxes, "blended")

  def draw(variables, key, index):
    del variables, key
    return patterns[index]

  patch = Patch(draw, jnp.asarray(boxes), size, settings.alpha * alpha)
  return patch_attack(targets, patch, sources=sources)


METHOD = AttackMethod(
  "blended",
  BlendedSettings,
  blended,
  "Chen, Liu, Li, Lu and Song 2017, Targeted Backdoor Attacks",
)
