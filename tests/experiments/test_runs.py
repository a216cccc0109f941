import json
import pathlib
import threading
import time

import jax
import numpy as np
import pytest
from PIL import Image

from bdjax.errors import UserError
from experiments.common import run, rundir
from experiments.common.config import identity
from experiments.common.defaults import resolve
from experiments.common.rundir import open_run

SCORES = {"clean_accuracy", "attack_success_rate", "robust_accuracy"}
FIGURES = {
  "examples.png",
  "regions.png",
  "source_target_matrix.png",
  "training_curves.png",
  "triggers.png",
}


@pytest.mark.parametrize(
  "experiment, kwargs, targets",
  [
    ("badnets", {"all_to_all": True}, 10),
    ("random_backdoor", {}, 1),
    ("random_backdoor", {"target_labels": "0,3,5,7", "seed": 3}, 4),
    ("ban", {}, 1),
    ("ban", {"target_labels": "2,1", "locations": "0:0,0:5;5:5,5:0"}, 2),
    ("cban", {}, 10),
    ("cban", {"target_labels": "4,6", "diversity": 0.0}, 2),
  ],
)
def test_an_attack_leaves_everything_behind(tiny, experiment, kwargs, targets):
  config = tiny(experiment, **kwargs)
  out = run(config)
  directory = resolve(config).directory
  stored = json.loads((directory / "results.json").read_text())
  assert stored == out
  assert set(out["measured"]) == SCORES
  for score in out["measured"].values():
    assert 0 <= score["low"] <= score["mean"] <= score["high"] <= 1
  details = out["details"]
  assert len(details["attack_success_rate_per_target"]) == targets
  assert len(details["attack_success_rate_per_draw"]) == 2
  matrix = details["source_target_matrix"]
  assert [len(row) for row in matrix] == [10] * targets
  for target, row in zip(details["target_labels"], matrix, strict=True):
    counted = [source for source, v in enumerate(row) if v is not None]
    if config.all_to_all:
      assert counted == [(target - 1) % 10]
    else:
      assert counted == [k for k in range(10) if k != target]
  assert out["data"]["source"] == "builtin" and len(out["data"]["sha256"]) == 4
  assert set(out["seconds"]) == {"compile", "train", "evaluate"}
  assert set(out["git_commit"]) == {"training", "evaluation"}
  assert out["steps"] == 10 and out["peak_memory_bytes"]["host"] > 2**20
  records = [
    json.loads(line)
    for line in (directory / "metrics.jsonl").read_text().splitlines()
  ]
  assert [r["step"] for r in records] == [5, 10]
  assert all(0 <= r["asr"] <= 1 for r in records)
  assert {p.name for p in (directory / "figures").iterdir()} == FIGURES
  for path in (directory / "figures").iterdir():
    with Image.open(path) as image:
      image.load()
      assert min(image.size) > 100
  assert (directory / "checkpoints" / "10").is_dir()


def test_clean_and_a_finished_run_is_not_repeated(tiny):
  lines = []
  out = run(tiny("clean"))
  assert set(out["measured"]) == {"clean_accuracy"}
  again = run(tiny("clean"), lines.append)
  assert again == out
  assert "is finished" in lines[0]
  fresh = run(tiny("clean", overwrite=True), lines.append)
  assert fresh["measured"] == out["measured"]
  assert fresh["seconds"] != out["seconds"]


def test_the_benchmark_is_trained_once_and_found_again(tiny):
  lines = []
  first = run(tiny("ban", benchmark="auto"), lines.append)
  assert any("training the clean benchmark" in line for line in lines)
  clean = run(tiny("clean"))
  benchmark = first["measured"]["benchmark_accuracy"]
  assert benchmark == clean["measured"]["clean_accuracy"]
  gap = first["measured"]["clean_accuracy"]["mean"] - benchmark["mean"]
  assert first["difference"]["mean"] == pytest.approx(gap)
  lines.clear()
  second = run(tiny("random_backdoor", benchmark="reuse"), lines.append)
  assert second["measured"]["benchmark_accuracy"] == benchmark
  assert not any("training" in line for line in lines)


def test_a_benchmark_of_other_flags_is_not_taken(tiny):
  run(tiny("clean", epochs=1))
  out = run(tiny("ban", benchmark="auto"))
  runs = pathlib.Path(tiny("ban").runs_dir)
  other = json.loads((runs / "clean-digits-2" / "results.json").read_text())
  assert other["config"]["epochs"] == 2
  want = other["measured"]["clean_accuracy"]
  assert out["measured"]["benchmark_accuracy"] == want


def test_a_benchmark_can_be_added_to_a_finished_run(tiny):
  before = run(tiny("ban"))
  after = run(tiny("ban", benchmark="auto"))
  assert "benchmark_accuracy" in after["measured"]
  for name, score in before["measured"].items():
    assert after["measured"][name] == score


@pytest.mark.parametrize("text", ["{", "[]", '{"config": 1}'])
def test_other_peoples_files_among_the_runs_are_passed_over(tiny, text):
  runs = pathlib.Path(tiny("ban").runs_dir)
  for name in ("other", "clean-digits"):
    (runs / name).mkdir(parents=True)
    (runs / name / "results.json").write_text(text)
    (runs / name / "config.json").write_text(text)
  out = run(tiny("ban", benchmark="auto"))
  assert "benchmark_accuracy" in out["measured"]
  assert (runs / "clean-digits" / "results.json").read_text() == text


def test_a_benchmark_that_another_trains_is_waited_for(tiny):
  clean = resolve(tiny("clean"))
  lines = []
  with open_run(clean.directory, identity(clean)):
    thread = threading.Thread(
      target=run, args=(tiny("ban", benchmark="auto"), lines.append)
    )
    thread.start()
    deadline = time.monotonic() + 60
    while not any("waiting for" in line for line in lines):
      assert time.monotonic() < deadline and thread.is_alive(), lines
      time.sleep(0.05)
  thread.join(60)
  stored = resolve(tiny("ban")).directory / "results.json"
  assert "benchmark_accuracy" in json.loads(stored.read_text())["measured"]


def test_overwriting_keeps_the_owner_named_as_long_as_weights_are_there(
  tiny, monkeypatch
):
  run(tiny("clean"))

  def stop(path):
    raise KeyboardInterrupt

  monkeypatch.setattr(rundir.shutil, "rmtree", stop)
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


def test_bfloat16(tiny):
  with jax.numpy_dtype_promotion("standard"):  # flax mixes dtypes here
    out = run(tiny("ban", model="minivgg", precision="bfloat16"))
  assert out["config"]["precision"] == "bfloat16"


def test_a_group_is_its_members_and_they_are_runs_made_alone(tiny):
  group = run(tiny("random_backdoor", seeds=2, seed=4))
  directory = resolve(tiny("random_backdoor", seeds=2)).directory
  alone = run(tiny("random_backdoor", seed=5, run_name="alone"))
  member = json.loads((directory / "seed-5" / "results.json").read_text())
  assert member["measured"] == alone["measured"]
  assert member["details"] == alone["details"]
  other = json.loads((directory / "seed-4" / "results.json").read_text())
  assert other["measured"] != member["measured"]
  score = group["measured"]["clean_accuracy"]
  means = [m["measured"]["clean_accuracy"]["mean"] for m in (other, member)]
  assert score["mean"] == pytest.approx(np.mean(means))
  assert (score["n"], score["over"]) == (2, "seeds")
  assert group["seeds"] == [4, 5]


def test_a_group_has_its_benchmark_beside_it(tiny):
  out = run(tiny("ban", seeds=2, benchmark="auto"))
  clean = run(tiny("clean", seeds=2))
  benchmark = out["measured"]["benchmark_accuracy"]
  assert benchmark == clean["measured"]["clean_accuracy"]
  assert out["difference"]["n"] == 2
  runs = pathlib.Path(tiny("ban").runs_dir)
  assert {p.name for p in runs.iterdir()} == {
    "ban-digits-seeds",
    "clean-digits-seeds",
  }
  more = run(tiny("ban", seeds=3, benchmark="auto"))  # two are there already
  assert more["seeds"] == [0, 1, 2] and more["difference"]["n"] == 3


def _own_data(path):
  """120 images of three classes that are told apart with ease."""
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


def test_the_users_own_data(tiny, tmp_path):
  flags = _own_data(tmp_path / "mine.npz")
  out = run(tiny("ban", model="cnn", epochs=12, **flags))
  assert out["data"]["source"] == "file" and out["data"]["name"] == "mine"
  assert out["measured"]["clean_accuracy"]["mean"] > 0.8


def test_airbench_has_a_training_of_its_own(tiny, tmp_path):
  flags = _own_data(tmp_path / "mine.npz") | {"model": "airbench"}
  flags |= {"width": 8, "augment": "crop_alternate", "epochs": 6}
  out = run(tiny("badnets", **flags))
  config = out["config"]
  assert (config["optimizer"], config["schedule"]) == ("muon", "linear")
  assert out["measured"]["clean_accuracy"]["mean"] > 0.8
  views = tiny("badnets", test_time_augmentation=True, run_name="six", **flags)
  again = run(views)
  # The same training, looked at with more eyes.
  assert again["measured"] != out["measured"]
  assert again["measured"]["clean_accuracy"]["mean"] > 0.8


def test_dry_run_says_everything_and_does_nothing(tiny, capsys):
  config = tiny("ban", dry_run=True)
  assert run(config) is None
  text = capsys.readouterr().out
  for line in ("epochs: 2", "parameters: ", "steps: 10 ", "estimated memory: "):
    assert line in text
  assert not pathlib.Path(config.runs_dir).exists()
