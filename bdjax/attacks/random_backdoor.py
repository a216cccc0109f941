"""Random Backdoor (Salem et al. 2022, section 3.1)."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from bdjax.attacks.base import Attack, AttackMethod
from bdjax.attacks.patches import Patch, patch_attack
from bdjax.attacks.settings import (
  PatchSettings,
  check_regions,
  parse_locations,
  targets_and_sources,
)


@dataclasses.dataclass(frozen=True)
class RandomBackdoorSettings(PatchSettings):
  """Settings of Random Backdoor."""

  def defaults(self, dataset: str) -> dict[str, Any]:
    """Return what settings that are None stand for, for a data set."""
    values = super().defaults(dataset)
    if not self.has_several_targets:
      mnist = dataset in ("mnist", "fashion_mnist")
      values["poison_rate"] = 0.15 if mnist else 0.2
    return values


def random_backdoor(
  settings: RandomBackdoorSettings,
  image_shape: tuple[int, int, int],
  num_classes: int,
) -> Attack:
  """Stamp a square of U[0,1] pixels, drawn anew for every image.

  With one target the place is drawn from the whole image, with several from
  the target's own region, so that the region names the label. The paper adds
  triggered copies to the training data; here they replace the image.

  Args:
    settings: filled.
    image_shape: (H, W, C).
    num_classes: K.

  Raises:
    UserError: targets, places or size do not fit the images.

  References:
    Salem, Wen, Backes, Ma and Zhang (2022), Dynamic Backdoor Attacks Against
    Machine Learning Models, section 3.1.
  """
  targets, sources = targets_and_sources(settings, num_classes)
  size = (settings.trigger_size,) * 2
  boxes = parse_locations(
    settings.locations, len(targets), size, image_shape[:2]
  )
  if sources is None:
    check_regions(boxes, "random_backdoor")

  def draw(variables, key, index):
    del variables
    return jax.random.uniform(key, (index.shape[0], *size, image_shape[2]))

  patch = Patch(draw, jnp.asarray(boxes), size)
  return patch_attack(targets, patch, sources=sources)


METHOD = AttackMethod(
  "random_backdoor",
  RandomBackdoorSettings,
  random_backdoor,
  "Salem, Wen, Backes, Ma and Zhang 2022, Dynamic Backdoor Attacks",
  # ResNet-18 with the ImageNet stem; benchmark: the clean model's accuracy.
  reported={
    "mnist": {"clean_accuracy": 0.9881, "attack_success_rate": 0.9852},
    "cifar10": {
      "clean_accuracy": 0.8248,
      "attack_success_rate": 0.9763,
      "benchmark_accuracy": 0.841,
    },
  },
)
