import dataclasses
import json
import logging
import pathlib

import jax
import numpy as np
import pytest
from PIL import Image

from bdjax.attacks import ATTACKS
from bdjax.errors import UserError
from bdjax.runs import directory as layout
from bdjax.runs import run
from bdjax.runs.dry_run import describe
from bdjax.runs.resolve import resolve

SCORES = {"clean_accuracy", "attack_success_rate", "robust_accuracy"}
SLOW = pytest.mark.slow
FIGURES = {"examples", "source_target_matrix", "training_curves", "triggers"}


def _read(config, name="results.json"):
  return json.loads((resolve(config).directory / name).read_text())


REGIONS = {"target_labels": "0,3,5,7", "seed": 3}
PLACES = {"target_labels": "2,1", "locations": "0:0,0:5;5:5,5:0"}
CASES = [  # attack, settings, number of targets
  ("badnets", {"all_to_all": True}, 10),
  ("blended", {}, 1),
  ("wanet", {"all_to_all": True}, 10),
]
SLOW_CASES = [
  ("badnets", {"poison": "batch"}, 1),
  ("random_backdoor", REGIONS, 4),
  ("ban", PLACES, 2),
  ("cban", {"target_labels": "4,6", "diversity": 0.0}, 2),
  ("input_aware", {"mask_epochs": 1}, 1),
]


@pytest.mark.figures
@pytest.mark.parametrize(
  "attack, kwargs, targets",
  [*CASES, *(pytest.param(*case, marks=SLOW) for case in SLOW_CASES)],
)
def test_an_attack_leaves_everything_behind(tiny, attack, kwargs, targets):
  config = tiny(attack, **kwargs)
  results = run(config)
  directory = resolve(config).directory
  assert _read(config) == results
  covers = attack in ("wanet", "input_aware")
  scores = SCORES | ({"cover_accuracy"} if covers else set())
  assert set(results["measured"]) == scores
  for score in results["measured"].values():
    assert 0 <= score["low"] <= score["mean"] <= score["high"] <= 1
  details = results["details"]
  assert len(details["attack_success_rate_per_target"]) == targets
  assert len(details["attack_success_rate_per_draw"]) == 2
  matrix = details["source_target_matrix"]
  for target, row in zip(details["target_labels"], matrix, strict=True):
    counted = [source for source, v in enumerate(row) if v is not None]
    if config.settings.all_to_all:
      assert counted == [(target - 1) % 10]
    else:
      assert counted == [k for k in range(10) if k != target]
  assert results["data"]["source"] == "builtin"
  assert len(results["data"]["sha256"]) == 4
  assert set(results["seconds"]) == {"prepare", "compile", "train", "evaluate"}
  assert results["steps"] == 10
  assert results["peak_memory_bytes"]["host"] > 2**20
  lines = (directory / "metrics.jsonl").read_text().splitlines()
  records = [json.loads(line) for line in lines]
  assert [r["step"] for r in records] == [5, 10]
  assert all(0 <= r["asr"] <= 1 for r in records)
  figures = {path.stem for path in (directory / "figures").iterdir()}
  patch = ATTACKS[attack].name not in ("blended", "wanet", "input_aware")
  input_aware = attack == "input_aware"
  expected = FIGURES | ({"regions"} if patch else set())
  assert figures == expected, (figures, input_aware)
  for path in (directory / "figures").iterdir():
    with Image.open(path) as image:
      image.load()
      assert min(image.size) > 100
  assert (directory / "checkpoints" / "10").is_dir()


@pytest.mark.parametrize(
  "attack, poison", [("badnets", "dataset"), ("badnets", "batch")]
)
def test_realised_poison_rates_are_told(tiny, attack, poison):
  results = run(tiny(attack, poison=poison, poison_rate=0.3, epochs=4))
  share = results["details"]["poisoned_share"]
  if poison == "dataset":  # exactly round(0.3 * 1367) images
    assert share == pytest.approx(410 / 1366, abs=1e-3)
  else:  # by chance, of the nine tenths that may be led to the target
    assert share == pytest.approx(0.27, abs=0.03)


@pytest.mark.slow
def test_clean_and_a_finished_run_is_not_repeated(tiny, caplog):
  caplog.set_level(logging.INFO, "bdjax")
  results = run(tiny("clean"))
  assert set(results["measured"]) == {"clean_accuracy"}
  assert run(tiny("clean")) == results
  assert "is finished" in caplog.text
  again = run(tiny("clean", overwrite=True))
  assert again["measured"] == results["measured"]
  assert again["seconds"] != results["seconds"]


def test_the_clean_run_is_found_and_never_trained(tiny, caplog):
  caplog.set_level(logging.INFO, "bdjax")
  before = run(tiny("badnets"))
  assert "benchmark_accuracy" not in before["measured"]
  assert "python -m experiments.clean --dataset=digits" in caplog.text
  for flag in ("--width=4", "--epochs=2", "--batch_size=256"):
    assert flag in caplog.text
  runs = pathlib.Path(tiny("badnets").runs_dir)
  assert [p.name for p in runs.iterdir()] == ["badnets-digits"]
  run(tiny("clean", epochs=1, run_name="other"))  # does not fit
  assert "benchmark_accuracy" not in run(tiny("badnets"))["measured"]
  clean = run(tiny("clean"))
  after = run(tiny("badnets"))
  benchmark = after["measured"].pop("benchmark_accuracy")
  assert benchmark == clean["measured"]["clean_accuracy"]
  assert after["measured"] == before["measured"]
  gap = after["measured"]["clean_accuracy"]["mean"] - benchmark["mean"]
  assert after["difference"]["mean"] == pytest.approx(gap)


@pytest.mark.slow
def test_a_clean_run_can_be_named(tiny):
  other = tiny("clean", epochs=1, run_name="other")
  clean = run(other)
  path = resolve(other).directory
  results = run(tiny("badnets", clean_run=str(path)))
  benchmark = results["measured"]["benchmark_accuracy"]
  assert benchmark == clean["measured"]["clean_accuracy"]
  attack = resolve(tiny("badnets")).directory
  for directory, words in (
    (attack, "must be a finished run of `clean`"),
    (attack / "nowhere", "must be a finished run of `clean`"),
  ):
    with pytest.raises(UserError, match=words):
      run(tiny("blended", clean_run=str(directory)))
  with pytest.raises(UserError, match="clean_run must have the same width"):
    run(tiny("blended", width=8, clean_run=str(path), run_name="w"))


@pytest.mark.parametrize("text", ["{", "[]", '{"config": 1}'])
def test_other_files_among_the_runs_are_passed_over(tiny, text):
  runs = pathlib.Path(tiny("badnets").runs_dir)
  for name in ("other", "clean-digits"):
    (runs / name).mkdir(parents=True)
    (runs / name / "results.json").write_text(text)
  assert "clean_accuracy" in run(tiny("badnets"))["measured"]
  assert (runs / "clean-digits" / "results.json").read_text() == text


@pytest.mark.slow
def test_overwriting_keeps_the_configuration_as_long_as_the_weights(
  tiny, monkeypatch
):
  run(tiny("clean"))

  def stop(path):
    raise KeyboardInterrupt

  monkeypatch.setattr(layout.shutil, "rmtree", stop)
  with pytest.raises(KeyboardInterrupt):
    run(tiny("clean", seed=7, overwrite=True))
  with pytest.raises(UserError, match="another configuration"):
    run(tiny("clean", seed=7))


def test_the_same_path_with_other_data_is_another_run(tiny, tmp_path):
  path = tmp_path / "mine.npz"
  images = np.arange(64 * 64, dtype=np.uint8).reshape(64, 8, 8, 1)
  for shift in (0, 1):
    labels = (np.arange(64) + shift) % 2
    np.savez(path, x_train=images, y_train=labels, x_test=images, y_test=labels)
    config = tiny("clean", dataset=str(path), batch_size=16, model="cnn")
    if shift:
      with pytest.raises(UserError, match="data_sha256"):
        run(config)
    else:
      run(config)


@pytest.mark.slow
def test_another_trigger_under_the_same_path_is_another_run(tiny, tmp_path):
  path = tmp_path / "trigger.png"
  for value in (255, 100):
    pixels = np.full((2, 3, 4), value, np.uint8)
    Image.fromarray(pixels, "RGBA").save(path)
    if value == 255:
      run(tiny("badnets", trigger=str(path)))
    else:
      with pytest.raises(UserError, match="trigger_sha256"):
        run(tiny("badnets", trigger=str(path)))


@pytest.mark.slow
def test_bfloat16(tiny):
  with jax.numpy_dtype_promotion("standard"):  # flax mixes dtypes here
    results = run(tiny("ban", model="minivgg", precision="bfloat16"))
  assert results["config"]["precision"] == "bfloat16"


def _own_data(path):
  """Write 120 images of three classes that are told apart with ease."""
  rng = np.random.default_rng(0)
  labels = np.arange(120) % 3
  images = rng.integers(0, 100, (120, 10, 12, 3), dtype=np.uint8)
  images[labels == 1, :5] += 100
  images[labels == 2, 5:] += 100
  np.savez(
    path,
    x_train=images[:90],
    y_train=labels[:90],
    x_test=images[90:],
    y_test=labels[90:],
  )
  return {"dataset": str(path), "batch_size": 16, "trigger_size": 3}


@pytest.mark.slow
def test_the_users_own_data(tiny, tmp_path):
  flags = _own_data(tmp_path / "mine.npz")
  results = run(tiny("ban", model="cnn", epochs=12, **flags))
  assert results["data"]["source"] == "file"
  assert results["data"]["name"] == "mine"
  assert results["measured"]["clean_accuracy"]["mean"] > 0.8


@pytest.mark.slow
def test_airbench_has_a_training_of_its_own(tiny, tmp_path):
  flags = _own_data(tmp_path / "mine.npz") | {"model": "airbench"}
  flags |= {"width": 8, "augment": "crop_alternate", "epochs": 6}
  flags |= {"poison": "batch"}
  results = run(tiny("badnets", **flags))
  config = results["config"]
  assert (config["optimizer"], config["schedule"]) == ("muon", "linear")
  assert results["measured"]["clean_accuracy"]["mean"] > 0.8
  views = tiny("badnets", test_time_augmentation=True, run_name="six", **flags)
  again = run(views)
  # The same training, looked at with more eyes.
  assert again["measured"] != results["measured"]
  assert again["measured"]["clean_accuracy"]["mean"] > 0.8


def test_dry_run_says_everything_and_does_nothing(tiny):
  config = tiny("ban", dry_run=True)
  text = describe(config)
  for line in ("epochs: 2", "parameters: ", "steps: 10 ", "estimated memory: "):
    assert line in text
  assert not pathlib.Path(config.runs_dir).exists()


def test_a_run_of_an_older_version_is_refused_in_one_line(tiny):
  config = resolve(tiny("clean"))
  config.directory.mkdir(parents=True)
  old = {"experiment": "clean", "epochs": 2}
  (config.directory / "config.json").write_text(json.dumps(old))
  with pytest.raises(UserError, match="older version of bdjax.*overwrite"):
    run(config)
  assert "measured" in run(dataclasses.replace(config, overwrite=True))
