"""Tests of bdjax.plots: files that open, and that show what was handed in."""

import matplotlib
import numpy as np
import pytest
from PIL import Image

from bdjax import plots

NAMES = ["airplane", "automobile", "bird", "cat", "deer"] + [
  f"a class with a long name {index}" for index in range(5)
]


def opened(path) -> np.ndarray:
  """The pixels of a PNG, uint8 [H,W,3]; nothing else lies beside it."""
  assert [file.name for file in path.parent.iterdir()] == [path.name]
  with Image.open(path) as image:
    assert image.format == "PNG"
    assert image.info["dpi"] == pytest.approx((150, 150), abs=0.1)
    assert 100 < image.width < 2000 and 100 < image.height < 2000
    return np.asarray(image.convert("RGB"))


def colours(pixels: np.ndarray) -> dict[tuple[int, ...], int]:
  """How many pixels have each colour."""
  found, counts = np.unique(pixels.reshape(-1, 3), axis=0, return_counts=True)
  return {
    tuple(colour): int(count)
    for colour, count in zip(found.tolist(), counts, strict=True)
  }


def noise(*shape: int) -> np.ndarray:
  """Different colours, uint8."""
  return np.random.default_rng(0).integers(40, 220, shape, dtype=np.uint8)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("columns", [1, 10])
def test_examples_shows_every_pixel_sharp(tmp_path, columns, channels):
  clean = noise(columns, 8, 8, channels)
  triggered = clean.copy()
  triggered[:, :2, :2] = 255 - clean[:, :2, :2]
  labels = np.arange(columns)
  targets = np.full(columns, 3)
  plots.examples(
    tmp_path / "a.png", clean, triggered, labels, targets, targets, NAMES
  )
  shown = colours(opened(tmp_path / "a.png"))
  for images in (clean, triggered):
    for pixel in images.reshape(-1, channels):
      colour = tuple(np.broadcast_to(pixel, 3).tolist())
      # A cell is 17 pixels wide: all but its rim is of the very colour.
      assert shown.get(colour, 0) >= 150


def test_examples_marks_hits_in_another_colour(tmp_path):
  images = noise(2, 8, 8, 1)
  fractions = images / np.float32(255)
  drawn = {}
  for name, predictions in (("hit", [1, 1]), ("miss", [0, 0])):
    path = tmp_path / name / "a.png"
    path.parent.mkdir()
    plots.examples(
      path, images, fractions, [0, 0], [1, 1], np.array(predictions), NAMES
    )
    drawn[name] = colours(opened(path))
  red, blue = (0xD5, 0x5E, 0x00), (0x00, 0x72, 0xB2)
  assert drawn["hit"].get(red, 0) > 50 and blue not in drawn["hit"]
  assert drawn["miss"].get(blue, 0) > 50 and red not in drawn["miss"]


@pytest.mark.parametrize("channels", [1, 3])
def test_regions_stand_where_the_boxes_say(tmp_path, channels):
  image = np.full((40, 40, channels), 255, np.uint8)
  boxes = np.array([(5, 10, 20, 38), (20, 0, 40, 30)])
  plots.regions(tmp_path / "a.png", boxes, [0, 1], NAMES, image, 4)
  pixels = opened(tmp_path / "a.png")
  margin = 0.08 * 150
  pixel = (pixels.shape[1] - 2 * margin) / 40
  for box, colour in zip(boxes, ("0072b2", "e69f00"), strict=True):
    edge = np.argwhere((pixels == tuple(bytes.fromhex(colour))).all(-1))
    drawn = (edge - margin) / pixel  # in pixels of the image
    sides = [*drawn.min(axis=0), *drawn.max(axis=0)]
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
  height, width = opened(tmp_path / "a.png").shape[:2]
  legend = boxes[-1][0] == 9  # beside the image, which is square
  assert (width > 1.15 * height) == legend


@pytest.mark.parametrize("rows", [1, 10])
@pytest.mark.parametrize("channels", [1, 3])
def test_trigger_sheet_shows_every_pixel_sharp(tmp_path, rows, channels):
  patches = noise(rows, 6, 3, 3, channels)
  plots.trigger_sheet(
    tmp_path / "a.png", patches / np.float64(255), np.arange(rows), NAMES
  )
  shown = colours(opened(tmp_path / "a.png"))
  for pixel in patches.reshape(-1, channels):
    assert shown.get(tuple(np.broadcast_to(pixel, 3).tolist()), 0) >= 150


def records(count: int, **more) -> list[dict]:
  """A run that learns."""
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
  red = (0xD5, 0x5E, 0x00)
  for name, more, attacked in (
    ("ban", {"asr": 0.5}, True),
    ("clean", {}, False),
    ("nan", {"asr": float("nan")}, False),
    ("none", {"asr": None}, False),
  ):
    path = tmp_path / name / "a.png"
    path.parent.mkdir()
    plots.training_curves(path, records(40, **more))
    assert (red in colours(opened(path))) == attacked


@pytest.mark.parametrize("count", [0, 1, 3])
def test_training_curves_of_a_short_run(tmp_path, count):
  plots.training_curves(tmp_path / "a.png", records(count))
  opened(tmp_path / "a.png")


@pytest.mark.parametrize("shape", [(1, 10), (2, 10), (10, 10), (43, 43)])
def test_source_target_matrix_has_the_colours_of_its_values(tmp_path, shape):
  matrix = np.full(shape, 0.25)
  matrix[0, 1] = 1.0
  matrix[np.arange(shape[0]), np.arange(shape[0])] = np.nan
  plots.source_target_matrix(
    tmp_path / "a.png", matrix, np.arange(shape[0]), NAMES * 5
  )
  shown = colours(opened(tmp_path / "a.png"))

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
