"""Conditional Backdoor Generating Network, cBaN (Salem et al. 2022, s. 3.3)."""

import dataclasses
from typing import Any

from bdjax.attacks.ban import BanSettings, generated
from bdjax.attacks.base import Attack, AttackMethod


@dataclasses.dataclass(frozen=True)
class CbanSettings(BanSettings):
  """Settings of cBaN: all labels are targets, anywhere in the image."""

  def defaults(self, dataset: str) -> dict[str, Any]:
    """Return what settings that are None stand for, for a data set."""
    labels = self.target_labels or "all"
    several = dataclasses.replace(self, target_labels=labels)
    values = super(CbanSettings, several).defaults(dataset)
    return values | {"target_labels": labels, "locations": "anywhere"}


def cban(
  settings: CbanSettings, image_shape: tuple[int, int, int], num_classes: int
) -> Attack:
  """Stamp BaN's triggers, whose generator also takes the target label one-hot.

  The trigger itself carries the label, so the places of different labels may
  overlap. The one-hot vector runs over the target labels, which for all classes
  as targets is the paper's. Measured without the diversity loss, the labels'
  triggers stay one and the same and the attack fails.

  Args:
    settings: filled.
    image_shape: (H, W, C).
    num_classes: K.

  Raises:
    UserError: targets, places or size do not fit the images.

  References:
    Salem, Wen, Backes, Ma and Zhang (2022), Dynamic Backdoor Attacks Against
    Machine Learning Models, section 3.3.
  """
  return generated(settings, image_shape, num_classes, conditional=True)


METHOD = AttackMethod(
  "cban",
  CbanSettings,
  cban,
  "Salem, Wen, Backes, Ma and Zhang 2022, Dynamic Backdoor Attacks",
  modes=("batch",),
)
