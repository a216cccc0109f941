"""What the tests of bdjax.plots share: reading a PNG and its colours."""

import numpy as np
import pytest
from PIL import Image

NAMES = ["airplane", "automobile", "bird", "cat", "deer"] + [
  f"a class with a long name {index}" for index in range(45)
]
RED, BLUE, GREEN = (0xD5, 0x5E, 0x00), (0x00, 0x72, 0xB2), (0x00, 0x9E, 0x73)


def read(path) -> np.ndarray:
  """Return the pixels of a PNG, uint8 [H,W,3]; no other file lies beside it."""
  assert [file.name for file in path.parent.iterdir()] == [path.name]
  with Image.open(path) as image:
    assert image.format == "PNG"
    assert image.info["dpi"] == pytest.approx((150, 150), abs=0.1)
    assert 100 < image.width < 2000 and 100 < image.height < 2000
    return np.asarray(image.convert("RGB"))


def colours(path) -> dict[tuple[int, ...], int]:
  """Count the pixels of each colour in a PNG."""
  values, counts = np.unique(
    read(path).reshape(-1, 3), axis=0, return_counts=True
  )
  return dict(zip(map(tuple, values.tolist()), counts.tolist(), strict=True))


def pixel_counts(path, images: np.ndarray) -> list[int]:
  """Count the pixels of a PNG that have the colour of each pixel of images."""
  shown = colours(path)
  pixels = images.reshape(-1, images.shape[-1])
  return [
    shown.get(tuple(np.broadcast_to(pixel, 3).tolist()), 0) for pixel in pixels
  ]


def noise(*shape: int) -> np.ndarray:
  """Draw different colours, uint8."""
  return np.random.default_rng(0).integers(40, 220, shape, dtype=np.uint8)
