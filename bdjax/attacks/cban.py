"""Conditional Backdoor Generating Network, cBaN (Salem et al. 2022, s. 3.3)."""

import numpy as np

from bdjax.attacks.ban import generated
from bdjax.attacks.poison import Attack


def cban(
  targets: tuple[int, ...],
  boxes: np.ndarray,
  size: int,
  channels: int,
  noise_dim: int = 100,
  width: int = 64,
) -> Attack:
  """BaN whose generator also takes the target label, one-hot.

  Salem et al. 2022, section 3.3: the trigger itself carries the label, so the
  places of different labels may overlap. The one-hot vector runs over the
  target labels, which for all classes as targets is the paper's. The
  experiments add `sameness` to the paper's loss, as for `ban`: measured
  without it, the labels' triggers stay one and the same and the attack fails.

  Args:
    targets: target labels.
    boxes: int32 [T,L,4], the places of each target; usually the whole image.
    size: side of the trigger in pixels.
    channels: of the images.
    noise_dim: length of the noise vector, at least 1.
    width: of the generator.

  Returns:
    The attack.
  """
  return generated(targets, boxes, size, channels, noise_dim, width, True)
