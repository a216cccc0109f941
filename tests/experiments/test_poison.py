"""Poisoned data sets on disk: what is in them, and what trains on them."""

import csv
import json
import os
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest
from tiny_runs import make_config

from bdjax import data, runs
from bdjax.attacks import ATTACKS, BadNetsSettings, WanetSettings
from bdjax.batching import to_float
from bdjax.data import export
from bdjax.data.image_files import read_image
from bdjax.errors import UserError
from bdjax.runs.load import load_run
from bdjax.runs.poison import LEFT_OUT, PoisonConfig, export_poisoned
from experiments import poison as script

pytestmark = pytest.mark.slow

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
  """BadNets on digits: the folder, what about.json says, and the arrays."""
  folder = tmp_path_factory.mktemp("poisoned") / "badnets"
  settings = BadNetsSettings(poison_rate=0.15, target_labels="3")
  about = export_poisoned(PoisonConfig(output=str(folder)), settings)
  with np.load(folder / "poisoned.npz") as archive:
    return folder, about, dict(archive)


def test_the_arrays(exported):
  _, about, arrays = exported
  clean = data.load("digits", defender_fraction=0)
  total = len(clean.train.labels)
  assert arrays["x_train"].shape == clean.train.images.shape
  poisoned = arrays["roles"] == 1
  assert poisoned.sum() == round(0.15 * total)
  assert set(arrays["roles"]) == {0, 1}
  np.testing.assert_array_equal(arrays["targets"], np.where(poisoned, 3, -1))
  # Only the poisoned images differ, and only in the corner that turns white.
  np.testing.assert_array_equal(
    arrays["x_train"][~poisoned], clean.train.images[~poisoned]
  )
  stamped = clean.train.images[poisoned].copy()
  stamped[:, -3:, -3:] = 255
  np.testing.assert_array_equal(arrays["x_train"][poisoned], stamped)
  labels = np.where(poisoned, 3, clean.train.labels)
  np.testing.assert_array_equal(arrays["y_train"], labels)
  assert (clean.train.labels[poisoned] != 3).all()
  np.testing.assert_array_equal(arrays["x_test"], clean.test.images)
  np.testing.assert_array_equal(arrays["y_test"], clean.test.labels)
  # Every test image that is not of the target, once.
  rows = np.flatnonzero(clean.test.labels != 3)
  np.testing.assert_array_equal(arrays["test_index"], rows)
  stamped = clean.test.images[rows].copy()
  stamped[:, -3:, -3:] = 255
  np.testing.assert_array_equal(arrays["x_test_triggered"], stamped)
  assert (arrays["y_test_triggered"] == 3).all()
  rates = about["rates"]
  assert rates["poisoned"] == poisoned.sum() == rates["labels_changed"]
  assert rates["poisoned_share"] == pytest.approx(poisoned.mean())
  of_target = arrays["y_train"] == 3
  assert rates["poisoned_share_of_target_classes"] == pytest.approx(
    poisoned[of_target].mean()
  )
  assert rates["triggered_test_images"] == len(rows)
  assert about["config"]["poison_rate"] == 0.15
  assert not set(LEFT_OUT) & set(about["config"])


def test_the_images(exported):
  folder, about, arrays = exported
  assert json.loads((folder / "about.json").read_text()) == about
  for part, images, labels, numbers in (
    ("train", "x_train", "y_train", np.arange(len(arrays["y_train"]))),
    ("test", "x_test", "y_test", np.arange(len(arrays["y_test"]))),
    (
      "test_triggered",
      "x_test_triggered",
      "y_test_triggered",
      arrays["test_index"],
    ),
  ):
    with open(folder / part / "index.csv", newline="") as file:
      rows = list(csv.DictReader(file))
    assert [r["image"] for r in rows] == [
      f"{label}/{number:05}.png"
      for label, number in zip(arrays[labels], numbers, strict=True)
    ]
    assert [int(r["label"]) for r in rows] == arrays[labels].tolist()
    if part == "train":
      roles = [("clean", "poisoned")[r] for r in arrays["roles"]]
      targets = ["" if t < 0 else str(t) for t in arrays["targets"]]
    else:
      role, target = ("clean", "") if part == "test" else ("poisoned", "3")
      roles, targets = [role] * len(rows), [target] * len(rows)
    assert [r["role"] for r in rows] == roles
    assert [r["target"] for r in rows] == targets
    files = sorted(p.name for p in (folder / part).rglob("*.png"))
    assert len(files) == len(rows)
    for i in (0, len(rows) // 2, len(rows) - 1):
      image = read_image(folder / part / rows[i]["image"])
      np.testing.assert_array_equal(image, arrays[images][i])


def test_a_network_trained_on_it_has_the_backdoor(exported, tmp_path):
  folder, _, arrays = exported
  config = make_config(
    tmp_path,
    "clean",
    dataset=str(folder / "poisoned.npz"),
    defender_fraction=0.05,
    width=8,
    epochs=6,
    batch_size=64,
    learning_rate=0.05,
    run_name="run",
  )
  results = runs.run(config)
  assert results["measured"]["clean_accuracy"]["mean"] > 0.8
  model, weights = load_run(tmp_path / "run").defender[:2]
  images = to_float(arrays["x_test_triggered"])
  logits, _ = jax.jit(model.apply)(*weights, images)
  hits = np.asarray(logits.argmax(-1)) == arrays["y_test_triggered"]
  assert hits.mean() > 0.9


def test_it_is_the_set_that_a_run_trains_on(trained, tmp_path):
  run = load_run(trained / "badnets-digits-seeds/seed-1")
  config = PoisonConfig(
    output=str(tmp_path / "out"),
    png=False,
    seed=1,
    defender_fraction=run.config.defender_fraction,
  )
  export_poisoned(config, run.config.settings)
  poisoned = run.poisoned()
  with np.load(tmp_path / "out/poisoned.npz") as arrays:
    for name, expected in (
      ("x_train", poisoned.images),
      ("y_train", poisoned.labels),
      ("roles", poisoned.roles),
      ("targets", poisoned.targets),
      ("x_defender", run.splits.defender.images),
      ("y_defender", run.splits.defender.labels),
    ):
      np.testing.assert_array_equal(arrays[name], expected)
  names = sorted(path.name for path in (tmp_path / "out").iterdir())
  assert names == ["about.json", "poisoned.npz"]


@pytest.mark.parametrize(
  "name", [n for n, method in ATTACKS.items() if "dataset" in method.modes]
)
def test_every_attack_on_data_sets(name, tmp_path):
  """Rows, targets and realised rates; several targets where there may be."""
  config = PoisonConfig(attack=name, output=str(tmp_path / name), png=False)
  about = export_poisoned(config)
  with np.load(tmp_path / name / "poisoned.npz") as arrays:
    triggered, rows = arrays["x_test_triggered"], arrays["test_index"]
    assert len(triggered) == about["rates"]["triggered_test_images"] > 0
    changed = (triggered != arrays["x_test"][rows]).any((1, 2, 3))
    assert changed.mean() > 0.9
    targets = arrays["y_test_triggered"]
    assert set(targets) <= set(about["rates"]["target_labels"])
    assert (targets != arrays["y_test"][rows]).all()
    assert ((arrays["targets"] >= 0) == (arrays["roles"] > 0)).all()
  assert about["rates"]["poisoned"] > 0


def test_covers_keep_their_labels(tmp_path):
  config = PoisonConfig(attack="wanet", output=str(tmp_path / "w"))
  settings = WanetSettings(poison_rate=0.1, cover_rate=0.2)
  about = export_poisoned(config, settings)
  clean = data.load("digits", defender_fraction=0).train
  with np.load(tmp_path / "w/poisoned.npz") as arrays:
    covers = arrays["roles"] == 2
    assert covers.sum() == about["rates"]["covers"]
    assert covers.mean() == pytest.approx(0.2, abs=1e-3)
    assert (arrays["y_train"] == clean.labels)[covers].all()
  text = (tmp_path / "w/train/index.csv").read_text()
  assert text.count(",cover,") == covers.sum()


def test_an_export_is_whole_or_not_at_all(tmp_path, monkeypatch):
  config = PoisonConfig(output=str(tmp_path / "out"), png=False)
  export_poisoned(config)
  before = (tmp_path / "out/poisoned.npz").read_bytes()
  with pytest.raises(UserError, match="output must be a new folder"):
    export_poisoned(config)

  def full(path, image):
    raise OSError(28, "No space left on device")

  again = PoisonConfig(output=str(tmp_path / "out"), overwrite=True, seed=1)
  with monkeypatch.context() as patch:
    patch.setattr(export, "_save_png", full)
    with pytest.raises(UserError, match="No space left.*another output"):
      export_poisoned(again)
  assert [path.name for path in tmp_path.iterdir()] == ["out"]
  assert (tmp_path / "out/poisoned.npz").read_bytes() == before
  export_poisoned(again)
  assert [path.name for path in tmp_path.iterdir()] == ["out"]
  assert (tmp_path / "out/poisoned.npz").read_bytes() != before
  assert (tmp_path / "out/train/index.csv").is_file()


def test_only_an_earlier_export_is_overwritten(tmp_path):
  (tmp_path / "precious").mkdir()
  (tmp_path / "precious/thesis.txt").write_text("all of it")
  config = PoisonConfig(output=str(tmp_path / "precious"), overwrite=True)
  with pytest.raises(UserError, match="must be an earlier export"):
    export_poisoned(config)
  assert (tmp_path / "precious/thesis.txt").read_text() == "all of it"


@pytest.mark.parametrize(
  ("names", "folders"),
  [
    (["T-shirt/top", "Ankle boot"], ["T-shirt_top", "Ankle_boot"]),
    ([str(n) for n in range(11)], [f"{n:02}" for n in range(11)]),
    (["a b", "a/b"], ["0", "1"]),
    (["..", "x"], ["0", "1"]),
  ],
)
def test_names_of_folders(names, folders):
  assert export._folder_names(names) == folders


@pytest.mark.parametrize(
  ("config", "settings", "words"),
  [
    (
      {"attack": "ban"},
      None,
      "attack must be one of badnets, .*got ban, which",
    ),
    ({"attack": "badnet"}, None, "badnet; did you mean badnets"),
    ({"output": None}, None, "output must be given"),
    ({}, BadNetsSettings(poison_rate=0.95), "poison_rate must be at most 0.9"),
    ({}, BadNetsSettings(target_labels="10"), "target_labels must be from 0"),
    ({"dataset": "nothing"}, None, "dataset must be one of"),
  ],
)
def test_bad_settings(tmp_path, config, settings, words):
  config = {"output": str(tmp_path / "out")} | config
  with pytest.raises(UserError, match=words) as error:
    export_poisoned(PoisonConfig(**config), settings)
  assert "\n" not in str(error.value)
  assert not list(tmp_path.iterdir())


def test_the_attack_is_read_before_the_other_flags():
  assert script.attack_name([]) == "badnets"
  assert script.attack_name(["--seed=1", "--attack=wanet"]) == "wanet"
  assert script.attack_name(["--attack", "blended", "--nopng"]) == "blended"


def test_the_script(tmp_path):
  def call(*arguments):
    return subprocess.run(
      [sys.executable, "-m", "experiments.poison", *arguments],
      cwd=ROOT,
      env=os.environ | {"XLA_FLAGS": ""},
      capture_output=True,
      text=True,
    )

  output = str(tmp_path / "out")
  done = call(
    "--attack=wanet", "--strength=0.7", "--nopng", f"--output={output}"
  )
  assert (done.returncode, done.stderr) == (0, "")
  assert "wanet on digits" in done.stdout and "10.0" in done.stdout
  about = json.loads((tmp_path / "out/about.json").read_text())
  assert about["config"]["strength"] == 0.7
  refused = call("--attack=ban", f"--output={tmp_path / 'none'}")
  assert (refused.returncode, refused.stdout) == (2, "")
  assert refused.stderr.startswith("error: --attack must be one of badnets")
  assert refused.stderr.count("\n") == 1
  assert not (tmp_path / "none").exists()
