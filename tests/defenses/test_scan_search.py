"""The images of a scan, its rounds' width, and the test of its triggers."""

import os
import pathlib

import bright_rows
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from bright_rows import BACKDOOR

from bdjax import models, sharding
from bdjax.attacks.patches import Trigger
from bdjax.data import folders
from bdjax.defenses import k_arm
from bdjax.defenses.neural_cleanse import searches
from bdjax.defenses.scan import ScanSettings, round_width
from bdjax.defenses.scan.search import ScanImages, score_triggers, split_images
from bdjax.models import Weights, importers

ROOT = pathlib.Path(__file__).parents[2]


def test_images_are_split_and_augmented():
  images = np.random.default_rng(0).integers(0, 256, (8, 9, 7, 3), np.uint8)
  got = split_images(images, 5, seed=1)
  assert got.search.shape == (30, 9, 7, 3) and got.search.dtype == np.uint8
  assert len(got.rows) == 2
  np.testing.assert_array_equal(got.held_out, images[got.rows])
  others = np.delete(images, got.rows, 0)
  np.testing.assert_array_equal(got.search[:6], others)
  # Every copy is a window of its image, or of its mirror image.
  for row, copy in enumerate(got.search[6:]):
    source = others[row % 6]
    padded = np.pad(source, ((3, 3), (3, 3), (0, 0)), mode="edge")
    windows = [padded[t : t + 9, x : x + 7] for t in range(7) for x in range(7)]
    assert any((copy == w).all() or (copy == w[:, ::-1]).all() for w in windows)
  same = split_images(images, 5, seed=1)
  np.testing.assert_array_equal(got.search, same.search)
  assert (got.search != split_images(images, 5, seed=2).search).any()


@pytest.mark.parametrize(
  ("num", "search", "held"),
  [(1, 5, 0), (3, 15, 0), (4, 15, 1), (1200, 900, 300)],
)
def test_number_of_images(num, search, held):
  got = split_images(np.zeros((num, 8, 8, 1), np.uint8), 5, seed=0)
  assert (len(got.search), len(got.held_out)) == (search, held)


def test_digits_are_not_mirrored():
  image = np.zeros((1, 8, 8, 1), np.uint8)
  image[0, :, :4] = 200  # bright on the left, also when shifted
  got = split_images(image, 30, seed=0).search[..., 0].astype(int)
  assert (got[:, :, 0] >= got[:, :, -1]).all() and len(got) == 30


def test_round_width_is_a_multiple_of_the_devices(monkeypatch):
  def width(devices, num_classes=100, **kwargs):
    mesh = sharding.make_mesh(jax.devices()[:devices])
    settings = ScanSettings(**kwargs)
    return round_width(settings, num_classes, (8, 8, 1), mesh)

  assert width(1) == 1 and width(4) == 4  # on CPU
  assert width(4, class_batch=5) == width(4, class_batch=8) == 8
  assert width(4, num_classes=5, class_batch=90) == 8
  monkeypatch.setattr(searches, "max_searches", lambda shape, size: 50)
  assert width(2) == 64


@pytest.mark.parametrize("known", [True, False])
def test_triggers_are_scored_on_images_of_other_classes(known):
  images = np.asarray(bright_rows.IMAGES)
  labels = np.asarray(bright_rows.LABELS) if known else None
  # A white pixel leads to the backdoor; an empty mask changes nothing.
  mask = np.zeros((7, 8, 8, 1), np.float32)
  mask[BACKDOOR, 7, 7] = 1
  rows = np.arange(20)
  scores = score_triggers(
    bright_rows.MODEL,
    bright_rows.WEIGHTS,
    ScanImages(images, images[rows], rows),
    labels,
    Trigger(mask, np.ones_like(mask)),
    np.array([0, BACKDOOR]),
  )
  assert scores[BACKDOOR][0] == 1 and scores[BACKDOOR].n == 20
  assert scores[0][0] == 0 and scores[0].n == 16
  assert scores[0].over == "held-out images"


@pytest.fixture
def csaw():
  path = pathlib.Path(
    os.environ.get("BDJAX_CSAW_DIR", ROOT.parent / "shared/csaw")
  )
  if not (path / "models").is_dir():
    pytest.skip("no ../shared/csaw and no $BDJAX_CSAW_DIR with models/")
  return path


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sunglasses", "anonymous_1"])
def test_the_target_has_the_smallest_mask_after_its_warmup(csaw, name):
  """Real networks, whose target is 0, and five other classes."""
  model = models.get("deepid", image_shape=(55, 47, 3), num_classes=1283)
  weights = importers.load(csaw / f"models/{name}_bd_weights.h5", model)
  faces = folders.read(csaw / "images/clean").images
  images = jnp.asarray(split_images(faces, 4, seed=0).search)
  call = k_arm.compile_search_steps(
    model,
    ScanSettings(),
    sharding.make_mesh(jax.devices()[:1]),
    steps_per_call=15,
  )
  arms = jnp.array([0, 200, 400, 600, 800, 1000], jnp.int32)
  state = k_arm.init(jax.random.key(0), 6, (55, 47, 3)).searches
  state = call(Weights(*weights), jax.random.key(1), images, arms, state)
  norms = np.asarray(state.best_norm)
  assert norms[0] < 0.95 * norms[1:].min()
