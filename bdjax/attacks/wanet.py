"""WaNet (Anh Nguyen and Anh Tran 2021): a smooth warp, no visible pattern."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from bdjax.attacks.base import Attack, AttackMethod, attack_setting
from bdjax.attacks.settings import AttackSettings, targets_and_sources
from bdjax.attacks.warping import bicubic_weights, identity_grid, sample


@dataclasses.dataclass(frozen=True)
class WanetSettings(AttackSettings):
  """Settings of WaNet."""

  strength: float = attack_setting(
    0.5, "Strength s of the warp.", low=0, sweep="strengths"
  )
  grid_size: int = attack_setting(4, "Control points k a side.", low=2)
  cover_rate: float | None = attack_setting(
    None,
    "Share of the images warped by the field and noise, label kept; 0 for no "
    "noise mode (default: twice the poison rate).",
    low=0,
    high=1,
  )
  trigger_seed: int = attack_setting(0, "Seed of the field.", low=0)

  def defaults(self, dataset: str) -> dict[str, Any]:
    """Return what settings that are None stand for, for a data set."""
    values = super().defaults(dataset)
    rate = values["poison_rate"]
    rate = rate if self.poison_rate is None else self.poison_rate
    return values | {"cover_rate": min(2 * rate, 1 - rate)}


def wanet(
  settings: WanetSettings, image_shape: tuple[int, int, int], num_classes: int
) -> Attack:
  """Warp every image by one field, and covers by the field with noise.

  The field: U[-1,1]^{k x k x 2} over its mean absolute value, upsampled
  bicubically to the image, times s / H, added to the identity and clipped. One
  field a target. The authors' batches hold the poisoned rows whatever their
  class; here never those that carry the target already.

  Args:
    settings: filled.
    image_shape: (H, W, C).
    num_classes: K.

  Raises:
    UserError: the targets do not fit the data.

  References:
    Nguyen and Tran (2021), WaNet - Imperceptible Warping-based Backdoor
    Attack, section 3, equations 3 to 6; k, s and the rates of the noise mode
    are the released code's.
  """
  targets, sources = targets_and_sources(settings, num_classes)
  height, width, _ = image_shape
  shape = (len(targets), settings.grid_size, settings.grid_size, 2)
  key = jax.random.key(settings.trigger_seed)
  points = jax.random.uniform(key, shape, minval=-1.0)
  points /= jnp.abs(points).mean((1, 2, 3), keepdims=True)
  field = jnp.einsum(
    "hi,tijd,wj->thwd",
    bicubic_weights(height, settings.grid_size),
    points,
    bicubic_weights(width, settings.grid_size),
    precision=jax.lax.Precision.HIGHEST,
  )
  identity = identity_grid(height, width)[None]
  moved = identity + settings.strength * field / height
  grids = jnp.clip(moved, -1.0, 1.0)  # [T,H,W,2]

  def apply(variables, key, images, index):
    del variables, key
    return sample(images, grids[index])

  def cover(variables, key, images, index):
    del variables
    grid = grids[index]
    noise = jax.random.uniform(key, grid.shape, minval=-1.0) / height
    return sample(images, jnp.clip(grid + noise, -1.0, 1.0))

  return Attack(
    targets=jnp.asarray(targets, jnp.int32),
    apply=apply,
    sources=sources,
    cover=cover if settings.cover_rate else None,
    cover_rate=settings.cover_rate,
    exact_rows=True,
  )


METHOD = AttackMethod(
  "wanet",
  WanetSettings,
  wanet,
  "Nguyen and Tran 2021, WaNet",
  modes=("batch", "dataset"),
)
