"""Trigger patterns from image files."""

import os

import numpy as np

from bdjax.data.image_files import read_with_alpha


def read_trigger(
  path: str | os.PathLike, channels: int
) -> tuple[np.ndarray, np.ndarray]:
  """Read a trigger's pattern and mask from a PNG or JPEG file.

  Args:
    path: the file, of at most 64 MB and 2**24 pixels.
    channels: of the images that the trigger is for, 1 or 3: colours become
      gray (ITU-R 601) and gray becomes RGB.

  Returns:
    The pattern, float32 [h,w,channels], and its opacity alpha, float32
    [h,w,1], both in [0,1]. Without an alpha channel the pattern is opaque: 1.

  Raises:
    UserError: no such file, not PNG or JPEG, broken, huge, or neither RGB nor
      gray of 8 bits.
  """
  return tuple(
    part.astype(np.float32) / np.float32(255)
    for part in read_with_alpha(path, channels)
  )
