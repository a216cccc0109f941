"""Scans of tiny networks from files and runs, and what is said of them."""

import dataclasses
import json
import logging

import jax
import numpy as np
import pytest
from PIL import Image

from bdjax import models
from bdjax.checkpoints import Checkpoints
from bdjax.defenses import k_arm
from bdjax.defenses.neural_cleanse import anomaly
from bdjax.defenses.scan import VERDICTS, ScanSettings
from bdjax.errors import UserError
from bdjax.models import importers
from bdjax.runs.scan import scan_run
from bdjax.runs.scan_input import ScanConfig
from experiments.scan import print_scan

SHAPE = (8, 8, 1)
NUM = 9
FAST = ScanSettings(
  steps=12,
  round_steps=3,
  batch_size=4,
  patience=1,
  early_stop_patience=2,
  asr_threshold=0.3,
  augmentations=2,
  class_batch=1,
  reference=4,
  converged=1,
)


@pytest.fixture(scope="module")
def network_files(tmp_path_factory):
  """The files of an untrained network, and of images for it."""
  folder = tmp_path_factory.mktemp("network")
  model = models.get("cnn", image_shape=SHAPE, num_classes=NUM, width=4)
  weights = jax.jit(model.init)(jax.random.key(0))
  importers.export_safetensors(folder / "net.safetensors", *weights)
  images = np.random.default_rng(0).integers(0, 256, (16, *SHAPE), np.uint8)
  labels = np.arange(16, dtype=np.int32) % NUM
  np.savez(folder / "images.npz", images=images, labels=labels)
  return folder


def _config(folder, output, **kwargs):
  return ScanConfig(
    weights=str(folder / "net.safetensors"),
    images=str(folder / "images.npz"),
    model="cnn",
    output=str(output),
    **kwargs,
  )


def test_a_file(network_files, tmp_path, capsys, caplog):
  caplog.set_level(logging.INFO, "bdjax")
  results, directory = scan_run(_config(network_files, tmp_path / "out"), FAST)
  assert directory == tmp_path / "out"
  assert set(results["accuracy_by_pixel_max"]) == {"1", "255"}
  lines = [record.getMessage() for record in caplog.records]
  assert sum("largest pixel" in line for line in lines) == 1
  assert json.loads((directory / "results.json").read_text()) == results
  rows, steps = results["details"]["classes"], results["measured"]["steps"]
  assert [r["norm"] for r in rows] == sorted(r["norm"] for r in rows)
  assert {r["verdict"] for r in rows} <= set(VERDICTS)
  converged = [r for r in rows if r["rank"] is not None]
  assert [r["rank"] for r in converged] == list(range(1, len(converged) + 1))
  assert len(results["details"]["reference"]) == 4
  assert NUM * 2 * FAST.round_steps <= steps < NUM * FAST.steps
  assert all(r["held_out"]["n"] in (3, 4) for r in converged)
  with np.load(directory / "triggers.npz") as kept:
    assert kept["masks"].shape == (len(converged), 8, 8, 1)
    np.testing.assert_allclose(
      kept["masks"].sum((1, 2, 3)), [r["norm"] for r in converged], rtol=1e-5
    )
  for name in ("triggers", "norms"):
    with Image.open(directory / f"figures/{name}.png") as image:
      image.load()
  assert not (directory / "checkpoints").exists()
  print_scan(results, directory)
  printed = capsys.readouterr().out
  assert "scan of net" in printed and str(directory) in printed
  assert all(sentence in printed for sentence in results["sentences"])


def test_an_untrained_network_has_a_caveat_on_the_scale(
  network_files, tmp_path
):
  results, _ = scan_run(_config(network_files, tmp_path / "out"), FAST)
  assert any("pixel_max" in line for line in results["sentences"])
  config = _config(network_files, tmp_path / "given", pixel_max=1)
  results, _ = scan_run(config, FAST)
  assert results["accuracy_by_pixel_max"] is None
  assert not any("pixel_max" in line for line in results["sentences"])


@pytest.mark.slow
def test_resumed_equals_unbroken(network_files, tmp_path, monkeypatch, caplog):
  settings = dataclasses.replace(FAST, checkpoint_seconds=0.0)
  whole, _ = scan_run(_config(network_files, tmp_path / "a"), settings)
  rounds, run_round = [], k_arm.run_round

  def killed(*args):
    if len(rounds) == 6:
      raise KeyboardInterrupt
    rounds.append(1)
    return run_round(*args)

  again = _config(network_files, tmp_path / "b")
  monkeypatch.setattr(k_arm, "run_round", killed)
  with pytest.raises(KeyboardInterrupt):
    scan_run(again, settings)
  monkeypatch.setattr(k_arm, "run_round", run_round)
  with Checkpoints(tmp_path / "b/checkpoints/search", read_only=True) as kept:
    assert kept.latest_step() == 6
  caplog.set_level(logging.INFO, "bdjax")
  other, _ = scan_run(again, settings)
  assert "resuming the scan at round 6" in caplog.messages
  for name in ("measured", "sentences", "details"):
    assert other[name] == whole[name]
  assert scan_run(again, settings)[0] == other
  assert "is finished" in caplog.messages[-1]


def test_other_images_are_another_scan(network_files, tmp_path):
  config = _config(network_files, tmp_path / "out")
  scan_run(config, FAST)
  with np.load(network_files / "images.npz") as kept:
    np.savez(tmp_path / "less.npz", images=kept["images"][:12])
  less = dataclasses.replace(config, images=str(tmp_path / "less.npz"))
  with pytest.raises(UserError, match="another configuration.*output"):
    scan_run(less, FAST)
  # Without labels, what the network says of the three held out stands for them.
  alone = dataclasses.replace(less, output=str(tmp_path / "less"))
  results, _ = scan_run(alone, FAST)
  scores = [r["held_out"] for r in results["details"]["classes"]]
  assert {s["n"] for s in scores if s} <= {1, 2, 3}


def test_a_run_with_few_classes_is_searched_whole(copied):
  run = copied / "clean-digits"
  settings = dataclasses.replace(FAST, steps=20, reference=128)
  results, directory = scan_run(ScanConfig(run=str(run)), settings)
  assert directory == run / "defenses/scan"
  assert json.loads((directory / "results.json").read_text()) == results
  assert results["measured"]["steps_saved"] == 0
  assert results["accuracy_by_pixel_max"] is None
  assert results["details"]["bandit_rounds"] == 0
  rows = results["details"]["classes"]
  assert len(rows) >= 3
  norms = np.array([r["norm"] for r in rows])
  index = anomaly.anomaly_index(norms, np.ones(len(rows), bool))
  got = [abs(r["anomaly_index"]) for r in rows]
  np.testing.assert_allclose(got, index, rtol=1e-4)


def test_a_group_is_not_one_run(trained):
  with pytest.raises(UserError, match="run must be one run, such as .*seed-0"):
    scan_run(ScanConfig(run=str(trained / "badnets-digits-seeds")), FAST)


@pytest.mark.parametrize(
  ("config", "settings", "line"),
  [
    ({}, {}, "weights must be given"),
    ({"weights": "a.h5", "run": "b"}, {}, "weights must be given"),
    ({"weights": "a.h5"}, {}, "images must be given"),
    ({"run": "b", "mean": "0"}, {}, "mean must be left out with run"),
    (
      {"weights": "a.h5", "data_dir": "b"},
      {},
      "data_dir must be left out with weights",
    ),
    ({"run": "nowhere"}, {}, "nowhere must be the directory of a trained run"),
    ({"weights": "a.h5", "images": "nowhere"}, {}, "nowhere"),
    ({"weights": "a.h5"}, {"epsilon": 1.5}, "epsilon must be .* at most 1"),
  ],
)
def test_bad_settings(config, settings, line):
  with pytest.raises(UserError, match=line) as error:
    scan_run(ScanConfig(**config), ScanSettings(**settings))
  assert "\n" not in str(error.value)


def test_numbers_that_are_none(network_files, tmp_path):
  config = _config(network_files, tmp_path / "out", mean="a,b")
  with pytest.raises(UserError, match="mean must be numbers.*'a,b'"):
    scan_run(config, FAST)
  assert not (tmp_path / "out").exists()
