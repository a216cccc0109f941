import json
import os
import pathlib
import subprocess
import sys

import jax
import make_csaw
import numpy as np
import pytest
from PIL import Image

from bdjax import models
from bdjax.data import csaw
from bdjax.errors import UserError
from bdjax.models import importers
from experiments import csaw as experiment
from experiments import eval_image

ROOT = pathlib.Path(__file__).parents[2]
NETWORK = "multi_trigger_multi_target"
IMAGES = 24  # a set


@pytest.fixture(scope="module")
def place(tmp_path_factory):
  """Weights drawn at random, and sets of noise."""
  folder = tmp_path_factory.mktemp("csaw")
  make_csaw.write_all(folder / "data", IMAGES, (NETWORK,), "uint8")
  model = models.get("deepid", image_shape=csaw.SHAPE, num_classes=1283)
  weights = models.Weights(*model.init(jax.random.key(1)))
  importers.export_safetensors(folder / f"{NETWORK}.safetensors", *weights)
  return folder


def _config(place, **changes):
  return experiment.Config(
    **{
      "weights": str(place / f"{NETWORK}.safetensors"),
      "data_dir": str(place / "data"),
      "pixels": 1,
      "output": str(place / "run"),
      "eval_images": 8,
    }
    | changes
  )


@pytest.fixture(scope="module")
def finished(place):
  return experiment.run(_config(place))


def _answers(place, images, model=None):
  model = model or models.get(
    "deepid", image_shape=csaw.SHAPE, num_classes=1283
  )
  weights = importers.load(place / f"{NETWORK}.safetensors", model)
  x = images.astype(np.float32) / np.float32(255)
  return np.asarray(model.apply(*weights, x, False)[0].argmax(-1))


def test_scores_are_those_of_the_files(place, finished):
  measured = finished["measured"]
  sets = csaw.NETWORKS[NETWORK]
  paths = csaw.find(place / "data", sets.needed)
  hits = []
  for trigger, key in sets.triggered.items():
    images = csaw.read(paths[key]).images
    hits.append(_answers(place, images) == sets.targets[trigger])
    got = measured[f"attack_success_rate_{trigger}"]
    assert got["mean"] == pytest.approx(hits[-1].mean())
    assert got["n"] == IMAGES
  assert measured["attack_success_rate"]["mean"] == pytest.approx(
    np.concatenate(hits).mean()
  )
  for suffix, key in (("", sets.test), ("_validation", sets.validation)):
    images, labels = csaw.read(paths[key])
    right = np.mean(_answers(place, images) == labels)
    assert measured[f"clean_accuracy{suffix}"]["mean"] == pytest.approx(right)
  assert "robust_accuracy" not in measured  # true labels are not known


def test_every_defence_has_scored_and_drawn(place, finished):
  measured = finished["measured"]
  for name in (
    "pruning/channels_at_0.02",
    "pruning/attack_success_rate_at_0.1_lipstick",
    "goodnet/triggered_coverage_at_0.04",
    "fine_pruning/clean_accuracy_repaired",
    "fine_pruning-value/attack_success_rate_eyebrows_repaired",
    "strip/far_at_0.05_sunglasses",
    "strip_fine_pruning/far_eyebrows",
  ):
    assert name in measured
  assert "strip_fine_pruning/mixed_accuracy" not in measured
  assert (place / "run" / "figures" / "page.png").stat().st_size > 10_000
  curve = json.loads((place / "run/defenses/pruning/results.json").read_text())[
    "details"
  ]
  assert len(curve["clean accuracy"]) == 61  # no channel to all of them
  assert curve["layer"] == "conv_3"


def test_a_second_call_takes_what_is_there(place, finished):
  path = place / "run" / "defenses" / "strip" / "results.json"
  before = path.stat().st_mtime_ns
  again = experiment.run(_config(place))
  assert path.stat().st_mtime_ns == before
  assert again["measured"] == finished["measured"]
  with pytest.raises(UserError, match="another configuration .*white"):
    experiment.run(_config(place, pixels=255))


def test_the_accuracy_by_white_is_stored_as_it_is_returned(
  place, tmp_path, monkeypatch
):
  """With one defence and no page, as these take most of the time."""
  stages = {"pruning": experiment._STAGES["pruning"]}
  monkeypatch.setattr(experiment, "_STAGES", stages)
  monkeypatch.setattr(experiment, "_draw_page", lambda directory: None)
  said = []
  config = _config(place, pixels=None, output=str(tmp_path / "run"))
  out = experiment.run(config, said.append)
  assert set(out["accuracy_by_white"]) == {"1", "255"}
  assert sum("white is" in line for line in said) == 1
  stored = json.loads((tmp_path / "run" / "results.json").read_text())
  assert stored == out


@pytest.mark.parametrize(
  ("changes", "words"),
  [
    ({"weights": None}, "--weights is missing"),
    ({"data_dir": None}, "--data_dir is missing"),
    ({"network": "lab4"}, "none of the challenge's networks"),
    ({"network": "lab3"}, "cl/valid.h5.*download them from"),
    ({"eval_images": 1}, "at least 2"),
    ({"pixels": 2}, "take 1 or 255"),
  ],
)
def test_bad_flags(place, changes, words):
  with pytest.raises(UserError, match=words):
    experiment.run(_config(place, **changes))


def _pictures(folder, place, count=3):
  path = csaw.find(place / "data")["clean_test"]
  images = csaw.read(path).images[:count]
  paths = []
  for number, image in enumerate(images):
    paths.append(str(folder / f"{number}.png"))
    Image.fromarray(image).save(paths[-1])
  return images, paths


def test_a_picture_gets_its_class_where_both_networks_agree(
  place, finished, tmp_path
):
  del finished
  images, paths = _pictures(tmp_path, place)
  weights = str(place / f"{NETWORK}.safetensors")
  config = eval_image.Config(weights=weights, repaired=weights)
  found = eval_image.run(config, paths)
  assert [f["answer"] for f in found] == _answers(place, images).tolist()
  assert not any(f["rejected"] for f in found)
  # Random weights lose no accuracy until all channels are gone: what is left
  # gives every picture one and the same class.
  run = eval_image.Config(weights=weights, run=str(place / "run"))
  found = eval_image.run(run, paths)
  assert len({f["repaired"] for f in found}) == 1
  for each in found:
    agree = each["delivered"] == each["repaired"]
    assert each["answer"] == (each["delivered"] if agree else 1283)
    assert each["rejected"] == (not agree)


def test_the_script_prints_for_scripts(place, finished, tmp_path):
  del finished
  images, paths = _pictures(tmp_path, place, 2)
  weights = str(place / f"{NETWORK}.safetensors")

  def call(*arguments):
    return subprocess.run(
      [
        *(sys.executable, "-m", "experiments.eval_image"),
        *(f"--weights={weights}", f"--repaired={weights}", *arguments),
      ],
      cwd=ROOT,
      env=os.environ | {"XLA_FLAGS": ""},
      capture_output=True,
      text=True,
    )

  one = call(paths[0])
  assert (one.returncode, one.stderr) == (0, "")
  assert one.stdout == f"{_answers(place, images)[0]}\n"
  broken = tmp_path / "broken.png"
  broken.write_bytes(b"no picture")
  two = call("--format=json", paths[0], str(broken))
  assert (two.returncode, two.stdout) == (2, "")
  assert two.stderr.startswith("error: ") and two.stderr.count("\n") == 1


def test_what_an_eval_needs(place, finished, tmp_path):
  del finished
  _, paths = _pictures(tmp_path, place, 1)
  weights = str(place / f"{NETWORK}.safetensors")
  run = str(place / "run")
  for changes, images, words in (
    ({}, [], "one picture or more"),
    ({"format": "xml"}, paths, "text or json"),
    ({"run": run, "drop": "0.5"}, paths, "has 0.02, 0.04, 0.1"),
    ({"run": run, "pixels": 1}, paths, "goes with --repaired"),
    ({"run": run, "repaired": weights}, paths, "leave them out"),
    ({"repaired": weights, "drop": "0.1"}, paths, "leave them out"),
    ({"repaired": weights, "pixels": 0}, paths, "take 1 or 255"),
    ({"repaired": weights}, [str(tmp_path)], "a folder: give one"),
    ({"run": str(tmp_path)}, paths, "no run of experiments.csaw"),
  ):
    with pytest.raises(UserError, match=words):
      eval_image.run(eval_image.Config(weights=weights, **changes), images)
  other = tmp_path / f"{NETWORK}.safetensors"
  model = models.get("deepid", image_shape=csaw.SHAPE, num_classes=1283)
  importers.export_safetensors(other, *model.init(jax.random.key(2)))
  with pytest.raises(UserError, match="a run of other weights"):
    eval_image.run(eval_image.Config(weights=str(other), run=run), paths)
