import json
import pathlib

import jax
import numpy as np
import pytest

from bdjax import data
from bdjax.checkpoints import Checkpoints
from bdjax.errors import UserError
from bdjax.runs import run
from bdjax.runs import run as run_function
from bdjax.runs.resolve import resolve
from bdjax.runs.setup import build

CASES = [
  ("ban", {"dataset": "cifar"}, "did you mean cifar10"),
  ("ban", {"model": "resnet"}, "did you mean resnet"),
  ("ban", {"trigger_size": 9}, "trigger_size must be .* images of 8x8"),
  ("ban", {"target_labels": "all"}, "trigger_size must be at most 1"),
  ("ban", {"target_labels": "10"}, "target_labels must be from 0 to 9"),
  ("ban", {"target_labels": "-1"}, "target_labels must be from 0 to 9"),
  ("ban", {"target_labels": "one"}, "must be all, or numbers"),
  ("cban", {"target_labels": "1,1"}, "target_labels must differ"),
  ("ban", {"poison_rate": 1.5}, "poison_rate must be at least 0 and at most 1"),
  ("ban", {"poison_rate": float("nan")}, "poison_rate must be finite"),
  ("ban", {"poison": "dataset"}, "poison must be batch for ban"),
  ("badnets", {"poison": "sometimes"}, "must be one of dataset, batch"),
  ("badnets", {"poison_rate": 0.99}, r"poison_rate must be at most 0\.9"),
  ("wanet", {"poison": "dataset", "cover_rate": 0.95}, "cover_rate must be"),
  ("wanet", {"cover_rate": 0.95}, r"cover_rate must be at most 0\.9 beside"),
  ("badnets", {"trigger": "none.png"}, "none.png"),
  ("input_aware", {"target_labels": "0,1"}, "one label for input_aware"),
  ("ban", {"batch_size": 4096}, "batch_size must be at most 13"),
  ("ban", {"batch_size": 30}, "multiple of the 4 devices"),
  ("ban", {"epochs": 0}, r"epochs must be at least 1 \(got 0\)"),
  ("ban", {"learning_rate": 0.0}, "learning_rate must be more than 0"),
  ("ban", {"schedule": "cosin"}, "did you mean cosine"),
  ("ban", {"width": 5}, "multiple of 4"),
  ("ban", {"run_name": "a/b"}, "without slashes"),
  ("ban", {"run_name": ".."}, "without slashes"),
  ("ban", {"run_name": ""}, "without slashes"),
  ("ban", {"locations": "here"}, "TOP:LEFT with commas"),
  ("ban", {"locations": "0:0;1:1"}, "one set of corners for all 1"),
  ("ban", {"locations": "1,2"}, "TOP:LEFT with commas"),
  ("ban", {"locations": "1:2:3:4"}, "TOP:LEFT with commas"),
  ("ban", {"locations": "99999999999999999999:0"}, "TOP:LEFT with commas"),
  ("ban", {"locations": "7:0"}, "locations must leave room .*7:0"),
  (
    "ban",
    {"target_labels": "0,1", "locations": "anywhere"},
    "locations must differ",
  ),
  (
    "random_backdoor",
    {"target_labels": "0,1", "locations": "2:2"},
    "locations must differ",
  ),
  (
    "badnets",
    {"target_labels": "0,1", "locations": "corner"},
    "locations must differ",
  ),
  (
    "badnets",
    {"target_labels": "3", "all_to_all": True},
    "target_labels must be left out with all_to_all",
  ),
  ("ban", {"axes": (("trigger_size", (3, 9)),)}, "trigger_size must be from 1"),
  ("ban", {"axes": (("target_labels", ("0", "10")),)}, "from 0 to 9"),
  ("ban", {"seeds": 0}, "seeds must be at least 1"),
  ("clean", {"defender_fraction": -0.1}, "defender_fraction must be"),
  ("clean", {"dataset": "none.npz"}, "none.npz"),
]


@pytest.mark.parametrize("experiment, kwargs, words", CASES)
def test_one_line_and_nothing_trained(tiny, experiment, kwargs, words):
  config = tiny(experiment, **kwargs)
  with pytest.raises(UserError, match=words) as error:
    run(config)
  assert "\n" not in str(error.value)
  runs = pathlib.Path(config.runs_dir)
  assert not list(runs.glob("*/metrics.jsonl"))
  assert not list(runs.glob("**/results.json"))


def test_a_run_of_another_configuration_is_left_alone(tiny):
  before = run(tiny("clean"))
  with pytest.raises(UserError, match="epochs 2 there, 3 here.*run_name"):
    run(tiny("clean", epochs=3))
  path = resolve(tiny("clean")).directory / "results.json"
  assert json.loads(path.read_text()) == before


@pytest.mark.parametrize(
  "text, words", [("{", "is damaged"), ("[]", "must be the configuration")]
)
def test_a_damaged_config_is_said(tiny, text, words):
  run(tiny("clean"))
  (resolve(tiny("clean")).directory / "config.json").write_text(text)
  with pytest.raises(UserError, match=f"config.json {words}"):
    run(tiny("clean"))


@pytest.mark.slow
def test_a_checkpoint_of_another_model(tiny):
  run(tiny("clean"))
  directory = resolve(tiny("clean")).directory
  wide = resolve(tiny("clean", width=8))
  config = json.loads((directory / "config.json").read_text())
  (directory / "config.json").write_text(json.dumps(config | {"width": 8}))
  (directory / "results.json").unlink()
  with pytest.raises(UserError, match="another model or configuration"):
    run(wide)


def test_runs_dir_is_a_file(tiny, tmp_path):
  path = tmp_path / "occupied"
  path.write_text("")
  with pytest.raises(UserError, match="cannot write to .*another runs_dir"):
    run(tiny("clean", runs_dir=str(path)))


@pytest.mark.slow
def test_a_loss_that_is_not_finite_keeps_the_last_good_checkpoint(tiny):
  config = tiny("clean", weight_decay=1e3, epochs=40, checkpoint_seconds=0.0)
  with pytest.raises(
    UserError,
    match=r"learning_rate must be smaller .*(the loss is|not finite).* step \d",
  ):
    run(config)
  resolved = resolve(config)
  log = resolved.directory / "metrics.jsonl"
  for line in log.read_text().splitlines():
    assert np.isfinite(json.loads(line)["loss"])
  splits = data.load("digits")
  setup = build(resolved, splits)
  carry = jax.eval_shape(setup.init, jax.random.key(0), splits.train.images)
  path = resolved.directory / "checkpoints"
  with Checkpoints(path, read_only=True) as checkpoints:
    kept = checkpoints.restore(carry.classifier)
  assert kept.step > 0
  for leaf in jax.tree.leaves(kept.state.params):
    assert np.isfinite(leaf).all()
  assert not (resolved.directory / "results.json").exists()


@pytest.mark.parametrize(
  "text, error, words",
  [
    ("RESOURCE_EXHAUSTED: out of memory", UserError, "try 68"),
    ("INTERNAL: other", jax.errors.JaxRuntimeError, "INTERNAL"),
  ],
)
def test_no_device_memory_names_a_batch_size_to_try(
  tiny, monkeypatch, text, error, words
):
  def broken(*args, **kwargs):
    raise jax.errors.JaxRuntimeError(text)

  monkeypatch.setitem(run_function.__globals__, "_train_one", broken)
  with pytest.raises(error, match=words):
    run(tiny("clean", batch_size=140))


def test_no_test_image_to_attack(tiny, tmp_path):
  path = tmp_path / "mine.npz"
  images = np.zeros((40, 8, 8, 1), np.uint8)
  labels = np.arange(40) % 2
  np.savez(
    path,
    x_train=images,
    y_train=labels,
    x_test=images[:4],
    y_test=np.zeros(4, int),
  )
  with pytest.raises(UserError, match="must leave test images to trigger"):
    run(tiny("ban", dataset=str(path), batch_size=8, model="cnn"))
