"""Fixed patterns, drawn by us or read from a picture, for static attacks."""

import dataclasses
import pathlib

import jax
import jax.numpy as jnp

from bdjax.attacks.base import attack_setting
from bdjax.attacks.settings import PatchSettings
from bdjax.data.trigger_images import read_trigger
from bdjax.errors import UserError


@dataclasses.dataclass(frozen=True)
class FixedTriggerSettings(PatchSettings):
  """Settings of attacks whose trigger can be a picture."""

  trigger: str | None = attack_setting(
    None,
    "Picture of the trigger, a PNG; its alpha channel times the opacity is "
    "how much it covers. It keeps its size unless trigger_size is given.",
  )


def picture(
  settings: FixedTriggerSettings, image_shape: tuple[int, int, int]
) -> tuple[jax.Array, jax.Array]:
  """Read the picture of a trigger.

  Args:
    settings: `trigger` is its path; `trigger_size` the length that its longer
      side gets, None to keep it as it is.
    image_shape: (H, W, C) of the images.

  Returns:
    Pattern float32 [h,w,C] and opacity float32 [h,w,1], both in [0,1].

  Raises:
    UserError: it cannot be read, or is larger than the images.
  """
  path = pathlib.Path(settings.trigger).expanduser()
  pattern, alpha = map(jnp.asarray, read_trigger(path, image_shape[2]))
  height, width = pattern.shape[:2]
  if settings.trigger_size:
    scale = settings.trigger_size / max(height, width)
    size = max(1, round(scale * height)), max(1, round(scale * width))
    pattern, alpha = [
      jnp.clip(jax.image.resize(x, (*size, x.shape[2]), "linear"), 0, 1)
      for x in (pattern, alpha)
    ]
  height, width = pattern.shape[:2]
  if height > image_shape[0] or width > image_shape[1]:
    raise UserError(
      f"trigger {path} is {height}x{width}, larger than the images "
      f"({image_shape[0]}x{image_shape[1]}): set trigger_size to resize it"
    )
  return pattern, alpha
