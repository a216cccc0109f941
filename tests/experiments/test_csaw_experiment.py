"""All defences on a tiny network of the challenge, and its interface."""

import json
import logging
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
from bdjax.batching import to_float
from bdjax.data import csaw
from bdjax.errors import UserError
from bdjax.models import importers
from bdjax.runs import csaw_defenses
from bdjax.runs.classify_images import ClassifyConfig, classify_images
from bdjax.runs.csaw_defenses import CsawConfig, defend_network
from experiments import csaw as script

pytestmark = pytest.mark.slow

ROOT = pathlib.Path(__file__).parents[2]
NETWORK = "multi_trigger_multi_target"
IMAGES = 24  # a set


@pytest.fixture(scope="module")
def files(tmp_path_factory):
  """Weights drawn at random, and sets of noise."""
  folder = tmp_path_factory.mktemp("csaw")
  make_csaw.write_all(folder / "data", IMAGES, (NETWORK,), "uint8")
  model = models.get("deepid", image_shape=csaw.SHAPE, num_classes=1283)
  weights = models.Weights(*model.init(jax.random.key(1)))
  importers.export_safetensors(folder / f"{NETWORK}.safetensors", *weights)
  return folder


def _config(files, **changes):
  return CsawConfig(
    **{
      "weights": str(files / f"{NETWORK}.safetensors"),
      "data_dir": str(files / "data"),
      "pixel_max": 1,
      "output": str(files / "run"),
      "eval_images": 8,
    }
    | changes
  )


@pytest.fixture(scope="module")
def finished(files):
  return defend_network(_config(files))[0]


def _answers(files, images, model=None):
  model = model or models.get(
    "deepid", image_shape=csaw.SHAPE, num_classes=1283
  )
  weights = importers.load(files / f"{NETWORK}.safetensors", model)
  x = to_float(images)
  return np.asarray(model.apply(*weights, x)[0].argmax(-1))


def test_scores_are_those_of_the_files(files, finished):
  measured = finished["measured"]
  sets = csaw.NETWORKS[NETWORK]
  paths = csaw.find(files / "data", sets.needed)
  hits = []
  for trigger, key in sets.triggered.items():
    images = csaw.read(paths[key]).images
    hits.append(_answers(files, images) == sets.targets[trigger])
    got = measured[f"attack_success_rate_{trigger}"]
    assert got["mean"] == pytest.approx(hits[-1].mean())
    assert got["n"] == IMAGES
  assert measured["attack_success_rate"]["mean"] == pytest.approx(
    np.concatenate(hits).mean()
  )
  for suffix, key in (("", sets.test), ("_validation", sets.validation)):
    images, labels = csaw.read(paths[key])
    right = np.mean(_answers(files, images) == labels)
    assert measured[f"clean_accuracy{suffix}"]["mean"] == pytest.approx(right)
  assert "robust_accuracy" not in measured  # true labels are not known


def test_every_defence_has_scored_and_drawn(files, finished):
  measured = finished["measured"]
  for name in (
    "pruning/channels_at_0.02",
    "pruning/attack_success_rate_lipstick_at_0.1",
    "goodnet/far_at_0.04",
    "fine_pruning/clean_accuracy_repaired",
    "fine_pruning-value/attack_success_rate_eyebrows_repaired",
    "strip/far_at_0.05_sunglasses",
    "strip_fine_pruning/far_eyebrows",
  ):
    assert name in measured
  assert "strip_fine_pruning/mixed_accuracy" not in measured
  assert (files / "run" / "figures" / "page.png").stat().st_size > 10_000
  curve = json.loads((files / "run/defenses/pruning/results.json").read_text())[
    "details"
  ]
  assert len(curve["clean accuracy"]) == 61  # no channel to all of them
  assert curve["layer"] == "conv_3"


def test_a_second_call_takes_what_is_there(files, finished):
  path = files / "run" / "defenses" / "strip" / "results.json"
  before = path.stat().st_mtime_ns
  again, directory = defend_network(_config(files))
  assert directory == files / "run"
  assert path.stat().st_mtime_ns == before
  assert again["measured"] == finished["measured"]
  with pytest.raises(UserError, match="another configuration .*pixel_max"):
    defend_network(_config(files, pixel_max=255))


def test_the_accuracy_by_pixel_max_is_stored_as_it_is_returned(
  files, tmp_path, monkeypatch, caplog
):
  """With one defence and no page, as these take most of the time."""
  stages = {"pruning": csaw_defenses.STAGES["pruning"]}
  monkeypatch.setattr(csaw_defenses, "STAGES", stages)
  monkeypatch.setattr(csaw_defenses, "_draw_page", lambda directory: None)
  caplog.set_level(logging.INFO, "bdjax")
  config = _config(files, pixel_max=None, output=str(tmp_path / "run"))
  results, directory = defend_network(config)
  assert set(results["accuracy_by_pixel_max"]) == {"1", "255"}
  assert sum("largest pixel" in line for line in caplog.messages) == 1
  stored = json.loads((directory / "results.json").read_text())
  assert stored == results


def test_the_table_has_the_scores_that_were_published(
  files, finished, monkeypatch, capsys
):
  published = {"pruning/channels_at_0.02": 45}
  results = finished | {"reported": published}
  monkeypatch.setattr(
    script, "defend_network", lambda config: (results, files / "run")
  )
  script.start({})
  printed = capsys.readouterr().out
  assert f"all defences on csaw-{NETWORK}" in printed
  (row,) = [x for x in printed.splitlines() if "channels at 0.02" in x]
  assert row.split()[-2:] == ["60", "45"]  # no accuracy to lose: all go
  assert "channels at 0 " not in printed  # not among those shown
  shown = csaw_defenses.shown(finished["measured"])
  for name, scores in csaw_defenses.REPORTED.items():
    own = [score for score in scores if "/" in score]
    assert own and set(own) <= set(shown), name


@pytest.mark.parametrize(
  ("changes", "words"),
  [
    ({"weights": None}, "weights must be given"),
    ({"data_dir": None}, "data_dir must be given"),
    ({"network": "lab4"}, "network must be one of lab3, .*got lab4"),
    ({"network": "lab3"}, "cl/valid.h5.*download them from"),
    ({"eval_images": 1}, "at least 2"),
    ({"pixel_max": 2}, "pixel_max must be 1 or 255"),
  ],
)
def test_bad_flags(files, changes, words):
  with pytest.raises(UserError, match=words):
    defend_network(_config(files, **changes))


def _images(folder, files, count=3):
  path = csaw.find(files / "data")["clean_test"]
  images = csaw.read(path).images[:count]
  paths = []
  for number, image in enumerate(images):
    paths.append(str(folder / f"{number}.png"))
    Image.fromarray(image).save(paths[-1])
  return images, paths


def test_an_image_gets_its_class_where_both_networks_agree(
  files, finished, tmp_path
):
  del finished
  images, paths = _images(tmp_path, files)
  weights = str(files / f"{NETWORK}.safetensors")
  config = ClassifyConfig(weights=weights, repaired=weights)
  answers = classify_images(config, paths)
  assert [a["answer"] for a in answers] == _answers(files, images).tolist()
  assert not any(a["rejected"] for a in answers)
  # Random weights lose no accuracy until all channels are gone: what is left
  # gives every image one and the same class.
  run = ClassifyConfig(weights=weights, run=str(files / "run"))
  answers = classify_images(run, paths)
  assert len({a["repaired"] for a in answers}) == 1
  for answer in answers:
    agree = answer["original"] == answer["repaired"]
    assert answer["answer"] == (answer["original"] if agree else 1283)
    assert answer["rejected"] == (not agree)


def test_the_script_prints_for_scripts(files, finished, tmp_path):
  del finished
  images, paths = _images(tmp_path, files, 2)
  weights = str(files / f"{NETWORK}.safetensors")

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
  assert one.stdout == f"{_answers(files, images)[0]}\n"
  broken = tmp_path / "broken.png"
  broken.write_bytes(b"no image")
  wrong = call("--format=xml", paths[0])
  assert (wrong.returncode, wrong.stdout) == (2, "")
  assert "--format must be one of text, json (got xml)" in wrong.stderr
  two = call("--format=json", paths[0], str(broken))
  assert (two.returncode, two.stdout) == (2, "")
  assert two.stderr.startswith("error: ") and two.stderr.count("\n") == 1


def test_what_an_eval_needs(files, finished, tmp_path):
  del finished
  _, paths = _images(tmp_path, files, 1)
  weights = str(files / f"{NETWORK}.safetensors")
  run = str(files / "run")
  for changes, images, words in (
    ({}, [], "at least one image"),
    (
      {"run": run, "drop": "0.5"},
      paths,
      "drop must be one of 0.02, 0.04, 0.1, .*got 0.5",
    ),
    ({"run": run, "pixel_max": 1}, paths, "left out without repaired"),
    ({"run": run, "repaired": weights}, paths, "run must be left out with"),
    ({"repaired": weights, "drop": "0.1"}, paths, "drop must be left out"),
    ({"repaired": weights, "pixel_max": 0}, paths, "pixel_max must be 1 or"),
    ({"repaired": weights}, [str(tmp_path)], "not a folder"),
    ({"run": str(tmp_path)}, paths, "run must be of experiments.csaw"),
  ):
    with pytest.raises(UserError, match=words):
      classify_images(ClassifyConfig(weights=weights, **changes), images)
  other = tmp_path / f"{NETWORK}.safetensors"
  model = models.get("deepid", image_shape=csaw.SHAPE, num_classes=1283)
  importers.export_safetensors(other, *model.init(jax.random.key(2)))
  with pytest.raises(UserError, match="weights must be those of the run"):
    classify_images(ClassifyConfig(weights=str(other), run=run), paths)
