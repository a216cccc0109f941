import numpy as np
import pytest

from bdjax.data import image_files

PIXELS = np.random.default_rng(0).integers(0, 256, (5, 4, 3), np.uint8)
GRAY = PIXELS[..., 0]


def test_write_png_comes_back(tmp_path):
  for image in (PIXELS, GRAY[..., None]):
    image_files.write_png(str(tmp_path / "a.png"), image)
    np.testing.assert_array_equal(
      image_files.read_image(tmp_path / "a.png"), image
    )
  assert [path.name for path in tmp_path.iterdir()] == ["a.png"]
  for image in (GRAY, PIXELS / 255, PIXELS[..., :2], PIXELS[None]):
    with pytest.raises(ValueError, match="image must be uint8"):
      image_files.write_png(tmp_path / "b.png", image)
  with pytest.raises(FileNotFoundError):
    image_files.write_png(tmp_path / "none" / "b.png", PIXELS)
  assert [path.name for path in tmp_path.iterdir()] == ["a.png"]
