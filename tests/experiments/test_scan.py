"""Scans of tiny networks from files and runs, and what is said of them."""

import dataclasses
import json
import os
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from bdjax import models, sharding
from bdjax.checkpoints import Checkpoints
from bdjax.data import folders
from bdjax.defenses import anomaly, k_arm
from bdjax.defenses.cost_schedule import Settings
from bdjax.errors import UserError
from bdjax.models import Weights, importers
from experiments import scan
from experiments.common import run as train
from experiments.common.config import Config as Trained
from experiments.scanning import search as scanning
from experiments.scanning import verdicts

ROOT = pathlib.Path(__file__).parents[2]
SHAPE = (8, 8, 1)
NUM = 9
FAST = {
  "steps": 12,
  "round_steps": 3,
  "batch_size": 4,
  "patience": 1,
  "early_stop_patience": 2,
  "asr_threshold": 0.3,
  "augmentations": 2,
  "class_batch": 1,
}


@pytest.fixture(scope="module")
def delivered(tmp_path_factory):
  """The files of an untrained network, and of images for it."""
  place = tmp_path_factory.mktemp("delivered")
  model = models.get("cnn", image_shape=SHAPE, num_classes=NUM, width=4)
  weights = jax.jit(model.init)(jax.random.key(0))
  importers.export_safetensors(place / "net.safetensors", *weights)
  images = np.random.default_rng(0).integers(0, 256, (16, *SHAPE), np.uint8)
  labels = np.arange(16, dtype=np.int32) % NUM
  np.savez(place / "images.npz", images=images, labels=labels)
  return place


def _config(place, output, **kwargs):
  return scan.Config(
    weights=str(place / "net.safetensors"),
    images=str(place / "images.npz"),
    model="cnn",
    output=str(output),
    **(FAST | {"reference": 4, "settled": 1} | kwargs),
  )


def test_a_file(delivered, tmp_path, capsys):
  config = _config(delivered, tmp_path / "out")
  said = []
  out = scan.run(config, said.append, show=True)
  assert set(out["accuracy_by_white"]) == {"1", "255"}
  assert sum("white is" in line for line in said) == 1
  assert json.loads((tmp_path / "out/results.json").read_text()) == out
  rows, steps = out["details"]["classes"], out["measured"]["steps"]
  assert [r["norm"] for r in rows] == sorted(r["norm"] for r in rows)
  assert {r["verdict"] for r in rows} <= set(verdicts.VERDICTS)
  settled = [r for r in rows if r["rank"] is not None]
  assert [r["rank"] for r in settled] == list(range(1, len(settled) + 1))
  assert len(out["details"]["reference"]) == 4
  assert NUM * 2 * FAST["round_steps"] <= steps < NUM * FAST["steps"]
  assert all(r["held_out"]["n"] in (3, 4) for r in settled)
  with np.load(tmp_path / "out/triggers.npz") as kept:
    assert kept["masks"].shape == (len(settled), 8, 8, 1)
    np.testing.assert_allclose(
      kept["masks"].sum((1, 2, 3)), [r["norm"] for r in settled], rtol=1e-5
    )
  for name in ("triggers", "norms"):
    with Image.open(tmp_path / f"out/figures/{name}.png") as image:
      image.load()
  printed = capsys.readouterr().out
  assert "scan of net" in printed and out["words"][0] in printed
  assert not (tmp_path / "out/checkpoints").exists()


def test_stopped_and_gone_on_with_equals_unbroken(
  delivered, tmp_path, monkeypatch
):
  config = _config(delivered, tmp_path / "a", checkpoint_seconds=0.0)
  whole = scan.run(config)
  rounds, play = [], k_arm.play

  def killed(*args):
    if len(rounds) == 6:
      raise KeyboardInterrupt
    rounds.append(1)
    return play(*args)

  again = dataclasses.replace(config, output=str(tmp_path / "b"))
  monkeypatch.setattr(k_arm, "play", killed)
  with pytest.raises(KeyboardInterrupt):
    scan.run(again)
  monkeypatch.setattr(k_arm, "play", play)
  with Checkpoints(tmp_path / "b/checkpoints/search", read_only=True) as kept:
    assert kept.latest_step() == 6
  said = []
  other = scan.run(again, said.append)
  assert "going on from round 6" in said
  for name in ("measured", "words", "details"):
    assert other[name] == whole[name]
  assert scan.run(again, said.append) == other
  assert "is finished" in said[-1]


def test_other_images_are_another_scan(delivered, tmp_path):
  config = _config(delivered, tmp_path / "out")
  scan.run(config)
  with np.load(delivered / "images.npz") as kept:
    np.savez(tmp_path / "less.npz", images=kept["images"][:12])
  less = dataclasses.replace(config, images=str(tmp_path / "less.npz"))
  with pytest.raises(UserError, match="another configuration.*--output"):
    scan.run(less)
  # Without labels, what the network says of the three held out stands for them.
  out = scan.run(dataclasses.replace(less, output=str(tmp_path / "less")))
  scores = [r["held_out"] for r in out["details"]["classes"]]
  assert {s["n"] for s in scores if s} <= {1, 2, 3}


def test_a_run_with_few_classes_is_searched_whole(tmp_path):
  place = tmp_path / "runs"
  train(
    Trained("clean", runs_dir=str(place), width=4, epochs=2, batch_size=256)
  )
  directory = place / "clean-digits"
  out = scan.run(scan.Config(run=str(directory), **(FAST | {"steps": 20})))
  path = directory / "defenses/scan/results.json"
  assert json.loads(path.read_text()) == out
  assert out["measured"]["steps_saved"] == 0
  assert out["accuracy_by_white"] is None
  assert out["details"]["rounds_of_bandit"] == 0
  rows = out["details"]["classes"]
  assert len(rows) >= 3
  norms = np.array([r["norm"] for r in rows])
  index = anomaly.anomaly_index(norms, np.ones(len(rows), bool))
  got = [abs(r["anomaly_index"]) for r in rows]
  np.testing.assert_allclose(got, index, rtol=1e-4)


@pytest.mark.parametrize(
  ("flags", "line"),
  [
    ({}, "take --weights=FILE"),
    ({"weights": "a.h5", "run": "b"}, "take --weights=FILE"),
    ({"weights": "a.h5"}, "--images is missing"),
    ({"run": "b", "mean": "0"}, "--mean goes with --weights"),
    ({"run": "nowhere"}, "does not exist"),
    ({"weights": "a.h5", "images": "nowhere"}, "nowhere"),
    ({"weights": "a.h5", "epsilon": 1.5}, "--epsilon=1.5 is out of range"),
  ],
)
def test_bad_flags(flags, line):
  with pytest.raises(UserError, match=line) as error:
    scan.run(scan.Config(**flags))
  assert "\n" not in str(error.value)


def test_numbers_that_are_none(delivered, tmp_path):
  config = _config(delivered, tmp_path / "out", mean="a,b")
  with pytest.raises(UserError, match="--mean=a,b"):
    scan.run(config)
  assert not (tmp_path / "out").exists()


def test_pictures():
  images = np.random.default_rng(0).integers(0, 256, (8, 9, 7, 3), np.uint8)
  got = scanning.prepare(images, 5, seed=1)
  assert got.search.shape == (30, 9, 7, 3) and got.search.dtype == np.uint8
  assert len(got.rows) == 2
  np.testing.assert_array_equal(got.held_out, images[got.rows])
  others = np.delete(images, got.rows, 0)
  np.testing.assert_array_equal(got.search[:6], others)
  # Every form is a window of its image, or of its mirror image.
  for place, form in enumerate(got.search[6:]):
    source = others[place % 6]
    padded = np.pad(source, ((3, 3), (3, 3), (0, 0)), mode="edge")
    windows = [padded[t : t + 9, x : x + 7] for t in range(7) for x in range(7)]
    assert any((form == w).all() or (form == w[:, ::-1]).all() for w in windows)
  same = scanning.prepare(images, 5, seed=1)
  np.testing.assert_array_equal(got.search, same.search)
  assert (got.search != scanning.prepare(images, 5, seed=2).search).any()


@pytest.mark.parametrize(
  ("num", "search", "held"),
  [(1, 5, 0), (3, 15, 0), (4, 15, 1), (1200, 900, 300)],
)
def test_how_many_pictures(num, search, held):
  got = scanning.prepare(np.zeros((num, 8, 8, 1), np.uint8), 5, seed=0)
  assert (len(got.search), len(got.held_out)) == (search, held)


def test_digits_are_not_mirrored():
  image = np.zeros((1, 8, 8, 1), np.uint8)
  image[0, :, :4] = 200  # bright on the left, also when shifted
  got = scanning.prepare(image, 30, seed=0).search[..., 0].astype(int)
  assert (got[:, :, 0] >= got[:, :, -1]).all() and len(got) == 30


@pytest.fixture
def csaw():
  found = pathlib.Path(
    os.environ.get("BDJAX_CSAW_DIR", ROOT.parent / "shared/csaw")
  )
  if not (found / "models").is_dir():
    pytest.skip("no ../shared/csaw and no $BDJAX_CSAW_DIR with models/")
  return found


@pytest.mark.parametrize("name", ["sunglasses", "anonymous_1"])
def test_the_target_promises_most_after_its_warm_up(csaw, name):
  """Real networks, whose target is 0, and five other classes."""
  model = models.get("deepid", image_shape=(55, 47, 3), num_classes=1283)
  weights = importers.load(csaw / f"models/{name}_bd_weights.h5", model)
  faces = folders.read(csaw / "images/clean").images
  images = jnp.asarray(scanning.prepare(faces, 4, seed=0).search)
  settings = scanning.settings(Settings, scan.Config())
  call = k_arm.make_call(
    model, settings, sharding.make_mesh(jax.devices()[:1]), stretch=15
  )
  arms = jnp.array([0, 200, 400, 600, 800, 1000], jnp.int32)
  started = k_arm.start(jax.random.key(0), 6, (55, 47, 3))
  state = call(
    Weights(*weights), jax.random.key(1), images, arms, started.state
  )
  norms = np.asarray(state.best_norm)
  assert norms[0] < 0.95 * norms[1:].min()
