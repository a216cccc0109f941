"""Tests of bdjax.plots on attacks and trainings: what the PNGs show."""

import matplotlib
import numpy as np
import pytest
from drawing import BLUE, NAMES, RED, colours, noise, pixel_counts, read

from bdjax import plots


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("columns", [1, 10])
def test_examples_shows_every_pixel_sharp(tmp_path, columns, channels):
  clean = noise(columns, 8, 8, channels)
  triggered = clean.copy()
  triggered[:, :2, :2] = 255 - clean[:, :2, :2]
  labels, targets = np.arange(columns), np.full(columns, 3)
  path = tmp_path / "a.png"
  plots.examples(path, clean, triggered, labels, targets, targets, NAMES)
  # A cell is 17 pixels wide: all but its rim is of the very colour.
  assert min(pixel_counts(path, clean)) >= 150
  assert min(pixel_counts(path, triggered)) >= 150


def test_examples_marks_hits_in_another_colour(tmp_path):
  images = noise(2, 8, 8, 1)
  fractions = images / np.float32(255)
  shown = {}
  for name, predictions in (("hit", [1, 1]), ("miss", [0, 0])):
    path = tmp_path / name / "a.png"
    path.parent.mkdir()
    plots.examples(
      path, images, fractions, [0, 0], [1, 1], np.array(predictions), NAMES
    )
    shown[name] = colours(path)
  assert shown["hit"].get(RED, 0) > 50 and BLUE not in shown["hit"]
  assert shown["miss"].get(BLUE, 0) > 50 and RED not in shown["miss"]


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
@pytest.mark.parametrize("channels", [1, 3])
def test_trigger_examples_shows_ten_times_the_difference(
  tmp_path, channels, dtype
):
  clean = noise(2, 6, 6, channels)
  # It goes both ways, and in the last row beyond what can be shown.
  change = np.array([0, 3, -5, 7, -9, 35])[:, None, None]
  triggered = (clean + change).astype(np.uint8)
  scale = 1 if dtype == np.uint8 else 255
  path = tmp_path / "a.png"
  plots.trigger_examples(
    path,
    (clean / scale).astype(dtype),
    (triggered / scale).astype(dtype),
    ["cat", "to automobile"],
  )
  assert min(pixel_counts(path, clean)) >= 150
  assert min(pixel_counts(path, triggered)) >= 150
  shown = colours(path)
  for value in (0, 30, 50, 70, 90, 255):  # 12 cells of each
    assert shown.get((value,) * 3, 0) >= 12 * 150


@pytest.mark.parametrize("channels", [1, 3])
def test_regions_stand_where_the_boxes_say(tmp_path, channels):
  image = np.full((40, 40, channels), 255, np.uint8)
  boxes = np.array([(5, 10, 20, 38), (20, 0, 40, 30)])
  plots.regions(tmp_path / "a.png", boxes, [0, 1], NAMES, image, 4)
  pixels = read(tmp_path / "a.png")
  margin = 0.08 * 150
  pixel = (pixels.shape[1] - 2 * margin) / 40
  for box, colour in zip(boxes, ("0072b2", "e69f00"), strict=True):
    edge = np.argwhere((pixels == tuple(bytes.fromhex(colour))).all(-1))
    edge = (edge - margin) / pixel  # in pixels of the image
    sides = [*edge.min(axis=0), *edge.max(axis=0)]
    assert sides == pytest.approx(box.tolist(), abs=0.5)


@pytest.mark.parametrize(
  "boxes",
  [
    [(0, 0, 32, 32)],
    [(0, 0, 32, 32)] * 10,
    [
      (row, side, row + 16, side + 6)
      for row in (0, 16)
      for side in range(0, 30, 6)
    ],
    [(start, start, start + 20, start + 20) for start in range(10)],
  ],
)
def test_regions_single_shared_and_overlapping(tmp_path, boxes):
  plots.regions(
    tmp_path / "a.png",
    np.array(boxes),
    np.arange(len(boxes)),
    NAMES,
    noise(32, 32, 3),
    5,
  )
  height, width = read(tmp_path / "a.png").shape[:2]
  legend = boxes[-1][0] == 9  # beside the image, which is square
  assert (width > 1.15 * height) == legend


@pytest.mark.parametrize("rows", [1, 10])
@pytest.mark.parametrize("channels", [1, 3])
def test_trigger_sheet_shows_every_pixel_sharp(tmp_path, rows, channels):
  patches = noise(rows, 6, 3, 3, channels)
  path = tmp_path / "a.png"
  plots.trigger_sheet(path, patches / np.float64(255), np.arange(rows), NAMES)
  assert min(pixel_counts(path, patches)) >= 150


def records(count: int, **more) -> list[dict]:
  """Make the records of a run that learns."""
  return [
    {
      "step": 10 * index,
      "epoch": index / 5,
      "loss": 2.3 / (1 + index),
      "accuracy": 1 - 0.9 / (1 + index),
      "learning_rate": 0.1,
    }
    | more
    for index in range(count)
  ]


def test_training_curves_draw_the_attack_only_where_there_is_one(tmp_path):
  path = tmp_path / "a.png"
  for more in ({"asr": 0.5}, {}, {"asr": float("nan")}, {"asr": None}):
    plots.training_curves(path, records(40, **more))
    assert (RED in colours(path)) == (more.get("asr") == 0.5)


def test_training_curves_of_short_runs(tmp_path):
  blue = []
  for count in (0, 1, 3):
    plots.training_curves(tmp_path / "a.png", records(count))
    blue.append(colours(tmp_path / "a.png")[BLUE])
  assert blue[0] < blue[1] < blue[2]  # the line in the legend is blue too


@pytest.mark.parametrize("shape", [(1, 10), (2, 10), (10, 10), (43, 43)])
def test_source_target_matrix_has_the_colours_of_its_values(tmp_path, shape):
  matrix = np.full(shape, 0.25)
  matrix[0, 1] = 1.0
  matrix[np.arange(shape[0]), np.arange(shape[0])] = np.nan
  plots.source_target_matrix(
    tmp_path / "a.png", matrix, np.arange(shape[0]), NAMES
  )
  shown = colours(tmp_path / "a.png")
  cmap = matplotlib.colormaps["viridis"]
  quarter = shown[cmap(0.25, bytes=True)[:3]]
  one = shown[cmap(1.0, bytes=True)[:3]]
  not_counted = shown[(0xE8, 0xE8, 0xE8)]
  # Areas are in the proportion of the cells, but for text and colour bar.
  rest = matrix.size - shape[0] - 1
  assert quarter / not_counted == pytest.approx(rest / shape[0], rel=0.2)
  assert one / not_counted == pytest.approx(1 / shape[0], rel=0.4)


def test_style_does_not_leak_and_a_failure_leaves_nothing(tmp_path):
  before = dict(matplotlib.rcParams)
  path = tmp_path / "a.png"
  plots.training_curves(path, records(3))
  whole = path.read_bytes()
  with pytest.raises(KeyError):
    plots.training_curves(path, [{"loss": 1.0}])
  assert path.read_bytes() == whole
  assert [file.name for file in tmp_path.iterdir()] == ["a.png"]
  assert dict(matplotlib.rcParams) == before
