import numpy as np
import pytest
from PIL import Image

from bdjax.data import image_files
from bdjax.data.trigger_images import read_trigger

COLOURS = np.array([[[255, 0, 0], [0, 255, 0]], [[0, 0, 255], [51, 51, 51]]])
ALPHA = np.array([[0, 255], [51, 102]])
# ITU-R 601: 0.299 red, 0.587 green, 0.114 blue.
LUMA = np.array([[76, 150], [29, 51]])


@pytest.fixture
def save(tmp_path):
  def save_(*channels):
    pixels = np.concatenate(channels, -1).astype(np.uint8)
    path = tmp_path / "trigger.png"
    Image.fromarray(pixels.squeeze()).save(path)
    return path

  return save_


def test_colours_with_alpha(save):
  pattern, alpha = read_trigger(save(COLOURS, ALPHA[..., None]), 3)
  assert pattern.dtype == alpha.dtype == np.float32
  assert alpha.shape == (2, 2, 1)
  np.testing.assert_array_equal(pattern, np.float32(COLOURS) / 255)
  np.testing.assert_allclose(alpha[..., 0], [[0, 1], [0.2, 0.4]], rtol=1e-6)


def test_without_alpha_it_is_opaque(save):
  pattern, alpha = read_trigger(str(save(COLOURS)), 3)
  np.testing.assert_array_equal(pattern, np.float32(COLOURS) / 255)
  np.testing.assert_array_equal(alpha, np.ones((2, 2, 1)))


@pytest.mark.parametrize("channels", [1, 3])
def test_gray_with_alpha(save, channels):
  path = save(LUMA[..., None], ALPHA[..., None])
  pattern, alpha = read_trigger(path, channels)
  expected = np.repeat(np.float32(LUMA)[..., None] / 255, channels, -1)
  np.testing.assert_array_equal(pattern, expected)
  np.testing.assert_array_equal(alpha[..., 0], np.float32(ALPHA) / 255)


def test_colours_become_gray(save):
  pattern, alpha = read_trigger(save(COLOURS, ALPHA[..., None]), 1)
  np.testing.assert_array_equal(pattern[..., 0], np.float32(LUMA) / 255)
  assert alpha[0, 0] == 0  # alpha does not touch the pattern


def test_palette_with_a_transparent_colour(tmp_path):
  image = Image.frombytes("P", (2, 1), bytes([0, 1]))
  image.putpalette([255, 0, 0, 0, 0, 255])
  image.save(tmp_path / "p.png", transparency=0)
  pattern, alpha = read_trigger(tmp_path / "p.png", 3)
  assert pattern.tolist() == [[[1, 0, 0], [0, 0, 1]]]
  assert alpha.tolist() == [[[0], [1]]]


def test_bad_files(save, tmp_path, fails, monkeypatch):
  path = save(COLOURS)
  assert "channels must be 1 or 3 (got 2)" in fails(read_trigger, path, 2)
  assert "no such file" in fails(read_trigger, tmp_path / "none.png", 3)
  monkeypatch.setattr(image_files, "MAX_PIXELS", 3)
  line = fails(read_trigger, path, 3)
  assert "trigger.png: it must have at most 3 pixels (got 2x2)" in line
  path.write_bytes(path.read_bytes()[:40])
  assert "cannot be read as PNG or JPEG" in fails(read_trigger, path, 3)
