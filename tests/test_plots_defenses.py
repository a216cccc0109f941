"""Tests of bdjax.plots on defences, scans and sweeps: what the PNGs show."""

import matplotlib.image
import numpy as np
import pytest
from drawing import BLUE, GREEN, NAMES, RED, colours, noise, read

from bdjax import plots

RNG = np.random.default_rng(0)


@pytest.mark.parametrize("triggered", [False, True])
def test_score_histogram_draws_each_sample_in_its_colour(tmp_path, triggered):
  samples = {"clean": np.linspace(0, 1, 61), "another detector's": np.ones(9)}
  if triggered:
    samples["triggered"] = np.full(30, 2.0)
  path = tmp_path / "a.png"
  plots.score_histogram(path, samples, {"0.01": 0.1}, "loss, nats")
  red, green, blue = np.moveaxis(read(path).astype(int), -1, 0)
  # Bars are translucent: their hue tells them.
  assert ((red > green + 60) & (green > blue)).any() == triggered
  assert ((blue > red + 60) & (blue > green)).any()
  assert ((green > red + 60) & (green > blue)).any()


def test_score_histogram_marks_thresholds(tmp_path):
  path, greys = tmp_path / "a.png", []
  for thresholds in ({}, {"0.01": 0.25, "0.05": 0.75}):
    samples = {"clean": np.array([0.0, 1.0])}
    plots.score_histogram(path, samples, thresholds, "entropy, bits")
    inner = read(path)[40:-120, 100:-50].reshape(-1, 3).astype(int)
    greys.append((np.ptp(inner, axis=1) + abs(inner[:, 0] - 170) < 60).sum())
  assert greys[1] > greys[0] + 200


@pytest.mark.parametrize(
  "samples",
  [
    {"calibration": np.zeros(5), "clean": np.zeros(5)},
    {"clean": np.array([0.0, 1.0, np.inf, np.nan])},
    {"clean": np.zeros(5), "triggered": np.zeros(0)},
    {},
  ],
)
def test_score_histogram_of_odd_samples(tmp_path, samples):
  plots.score_histogram(tmp_path / "a.png", samples, {}, "score")
  read(tmp_path / "a.png")


@pytest.mark.parametrize(
  "total, channels, flagged", [(2, 1, []), (10, 3, [1]), (23, 3, [])]
)
def test_reversed_triggers_name_what_is_flagged(
  tmp_path, total, channels, flagged
):
  masks = RNG.random((total, 8, 8, 1)) * 0.1
  patterns = RNG.random((total, 8, 8, channels)) * 0.1
  path = tmp_path / "a.png"
  plots.reversed_triggers(
    path, masks, patterns, patterns, NAMES[:total], flagged
  )
  assert (RED in colours(path)) == bool(flagged)


@pytest.mark.parametrize("flagged", [[], [1]])
def test_mask_norms_with_a_class_not_reached(tmp_path, flagged):
  norms, index = np.array([5.0, 1.0, np.nan]), np.array([0.5, 3.0, np.nan])
  path = tmp_path / "a.png"
  plots.mask_norms(path, norms, index, NAMES[:3], flagged, 2.0)
  assert (RED in colours(path)) == bool(flagged)


def test_mask_norms_where_no_class_was_reached(tmp_path):
  nan = np.full(3, np.nan)
  plots.mask_norms(tmp_path / "a.png", nan, nan, NAMES[:3], [], 2.0)
  read(tmp_path / "a.png")


def test_repair_curve_and_rounds_draw_every_curve(tmp_path):
  curves = {
    "clean accuracy": np.linspace(0.9, 0.8, 9),
    "ASR": np.linspace(1, 0, 9),
    "robust accuracy": np.linspace(0, 0.8, 9),
    "fourth": np.linspace(0.1, 0.2, 9),
  }
  for name in ("repair", "rounds"):
    path = tmp_path / name / "a.png"
    path.parent.mkdir()
    if name == "repair":
      stops = {"fall 0.02": 3, "fall 0.04": 3, "end": 8}
      plots.repair_curve(path, curves, stops, "channels of conv_2 pruned")
    else:
      plots.rounds(path, [str(i) for i in range(9)], curves)
    shown = colours(path)
    orange = (0xE6, 0x9F, 0x00)
    assert min(shown.get(c, 0) for c in (BLUE, RED, GREEN, orange)) > 100


@pytest.mark.parametrize("flagged", [[], [0, 7]])
def test_scanned_norms_circles_what_is_flagged(tmp_path, flagged):
  norms = np.r_[np.linspace(1, 50, 60), np.inf]
  reference = np.arange(61) < 10
  path = tmp_path / "a.png"
  plots.scanned_norms(
    path, norms, {"reference": reference, "others": ~reference}, flagged
  )
  assert (RED in colours(path)) == bool(flagged)


def test_sweep_draws_a_panel_a_score_and_a_line_a_name(tmp_path):
  def scores(values):
    return [{"mean": v, "low": v - 0.1, "high": v + 0.1} for v in values]

  lines = {"3": scores([0.2, 0.4]), "5": scores([0.3, 0.8])}
  panels = {"clean accuracy": lines, "attack success rate": lines}
  path = tmp_path / "a.png"
  plots.sweep(path, [0.01, 0.1], "poison rate", panels)
  pixels = read(path)
  halves = np.array_split(pixels, 2, axis=1)
  for colour in (BLUE, (0xE6, 0x9F, 0x00)):
    assert all((half == colour).all(-1).sum() > 50 for half in halves)


def test_page_shows_the_figures_it_is_given(tmp_path):
  colour = tuple(noise(3).tolist())
  figure = tmp_path / "figures" / "b.png"
  figure.parent.mkdir()
  matplotlib.image.imsave(figure, np.full((20, 40, 3), colour, np.uint8))
  path = tmp_path / "page" / "a.png"
  path.parent.mkdir()
  plots.page(path, {"title": figure})
  assert colours(path)[colour] > 10_000
