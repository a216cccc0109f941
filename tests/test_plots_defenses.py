import numpy as np
import pytest
from PIL import Image

from bdjax import plots

RNG = np.random.default_rng(0)
NAMES = [f"class number {i}" for i in range(23)]


def _pixels(path):
  with Image.open(path) as image:
    pixels = np.asarray(image.convert("RGB"))
  assert min(pixels.shape[:2]) > 100
  return pixels


def _has_red(pixels):
  red, green, blue = np.moveaxis(pixels.astype(int), -1, 0)
  return bool(((red > 180) & (green < 120) & (blue < 60)).any())


@pytest.mark.parametrize("triggered", [False, True])
def test_entropies(tmp_path, triggered):
  samples = {"calibration": RNG.random(50), "clean": RNG.random(40)}
  if triggered:
    samples["triggered"] = np.zeros(30)
  plots.entropies(tmp_path / "a.png", samples, {"0.01": 0.1}, "bits")
  _pixels(tmp_path / "a.png")


def test_entropies_that_are_all_alike(tmp_path):
  same = {"calibration": np.zeros(5), "clean": np.zeros(5)}
  plots.entropies(tmp_path / "a.png", same, {}, "nats")
  _pixels(tmp_path / "a.png")


@pytest.mark.parametrize("total, channels", [(2, 1), (10, 3), (23, 3)])
@pytest.mark.parametrize("flagged", [[], [1]])
def test_reversed_triggers_name_what_is_flagged(
  tmp_path, total, channels, flagged
):
  masks = RNG.random((total, 8, 8, 1)) * 0.1
  patterns = RNG.random((total, 8, 8, channels)) * 0.1
  plots.reversed_triggers(
    tmp_path / "a.png", masks, patterns, patterns, NAMES[:total], flagged
  )
  assert _has_red(_pixels(tmp_path / "a.png")) == bool(flagged)


@pytest.mark.parametrize("flagged", [[], [1]])
def test_mask_norms_with_a_class_not_reached(tmp_path, flagged):
  norms, index = np.array([5.0, 1.0, np.nan]), np.array([0.5, 3.0, np.nan])
  plots.mask_norms(tmp_path / "a.png", norms, index, NAMES[:3], flagged, 2.0)
  assert _has_red(_pixels(tmp_path / "a.png")) == bool(flagged)


def test_pruning_curve_and_rounds(tmp_path):
  curves = {"clean accuracy": RNG.random(9), "ASR": RNG.random(9)}
  stops = {"fall 0.02": 3, "fall 0.04": 3}
  plots.pruning_curve(tmp_path / "a.png", curves, stops, "conv_2")
  assert _has_red(_pixels(tmp_path / "a.png"))
  plots.rounds(tmp_path / "b.png", [str(i) for i in range(9)], curves)
  assert _has_red(_pixels(tmp_path / "b.png"))
