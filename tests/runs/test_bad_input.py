import json
import pathlib
import signal

import jax
import numpy as np
import pytest

from bdjax import data
from bdjax.checkpoints import Checkpoints
from bdjax.errors import UserError
from experiments.common import cli, member, run
from experiments.common.defaults import resolve
from experiments.common.program import build

CASES = [
  ("ban", {"dataset": "cifar"}, "did you mean cifar10"),
  ("ban", {"model": "resnet"}, "did you mean resnet18"),
  ("ban", {"trigger_size": 9}, "does not fit into images of 8x8"),
  ("ban", {"target_labels": "all"}, "take trigger_size up to 1"),
  ("ban", {"target_labels": "10"}, "the labels are 0 to 9"),
  ("ban", {"target_labels": "-1"}, "the labels are 0 to 9"),
  ("ban", {"target_labels": "one"}, "take all, or numbers"),
  ("cban", {"target_labels": "1,1"}, "names a label twice"),
  ("ban", {"poison_rate": 1.5}, "poison_rate=1.5 is out of range"),
  ("ban", {"poison_rate": float("nan")}, "poison_rate=nan is out of range"),
  ("ban", {"batch_size": 4096}, "larger than the training set"),
  ("ban", {"batch_size": 30}, "over 4 devices; take 28"),
  ("ban", {"epochs": 0}, "epochs=0 is out of range: take 1 or more"),
  ("ban", {"learning_rate": 0.0}, "take a positive number"),
  ("ban", {"schedule": "cosin"}, "did you mean cosine"),
  ("ban", {"width": 5}, "multiple of 4"),
  ("ban", {"run_name": "a/b"}, "without slashes"),
  ("ban", {"run_name": ".."}, "without slashes"),
  ("ban", {"run_name": ""}, "without slashes"),
  ("ban", {"locations": "here"}, "TOP:LEFT with commas"),
  ("ban", {"locations": "0:0;1:1"}, "take one set of corners for all 1"),
  ("ban", {"locations": "1,2"}, "TOP:LEFT with commas"),
  ("ban", {"locations": "1:2:3:4"}, "TOP:LEFT with commas"),
  ("ban", {"locations": "99999999999999999999:0"}, "TOP:LEFT with commas"),
  ("ban", {"locations": "7:0"}, "location 7:0 leaves no room"),
  (
    "ban",
    {"target_labels": "0,1", "locations": "anywhere"},
    "places of their own",
  ),
  (
    "random_backdoor",
    {"target_labels": "0,1", "locations": "2:2"},
    "places of their own",
  ),
  (
    "badnets",
    {"target_labels": "0,1", "locations": "corner"},
    "places of their own",
  ),
  (
    "badnets",
    {"target_labels": "3", "all_to_all": True},
    "contradicts --all_to_all",
  ),
  ("ban", {"poison_rates": "0.1,often"}, "take numbers with commas"),
  ("ban", {"poison_rates": "0.1,0.2,0.10"}, "poison_rates.* names 0.1 twice"),
  ("ban", {"poison_rates": "0.1,1.5"}, "--poison_rates=.*1.5 is out of range"),
  ("ban", {"poison_rates": "nan"}, "poison_rate=nan is out of range"),
  ("ban", {"poison_rates": "0.1", "poison_rate": 0.1}, "leave one of them out"),
  ("ban", {"trigger_sizes": "3,9"}, "9x9 does not fit into images of 8x8"),
  ("ban", {"trigger_sizes": "3,0"}, "--trigger_sizes=.*0 is out of range"),
  ("ban", {"trigger_sizes": "3,2.5"}, "take numbers with commas"),
  ("ban", {"target_sweep": "0,10"}, "the labels are 0 to 9"),
  ("ban", {"target_sweep": "0,all"}, "take numbers with commas"),
  ("badnets", {"target_sweep": "1", "all_to_all": True}, "contradicts"),
  ("ban", {"seeds": 2, "at_once": 2}, "at_once=2 needs a single device"),
  ("ban", {"at_once": 0}, "at_once=0 is out of range"),
  ("clean", {"defender_fraction": -0.1}, "defender_fraction=-0.1 is out"),
  ("clean", {"dataset": "none.npz"}, "none.npz"),
]


@pytest.mark.parametrize("experiment, kwargs, words", CASES)
def test_one_line_and_nothing_written(tiny, experiment, kwargs, words):
  config = tiny(experiment, **kwargs)
  with pytest.raises(UserError, match=words) as error:
    run(config)
  assert "\n" not in str(error.value)
  assert not pathlib.Path(config.runs_dir).exists()


def test_a_run_of_another_configuration_is_left_alone(tiny):
  before = run(tiny("clean"))
  with pytest.raises(UserError, match="epochs 2 there, 3 here.*--run_name"):
    run(tiny("clean", epochs=3))
  path = resolve(tiny("clean")).directory / "results.json"
  assert json.loads(path.read_text()) == before


@pytest.mark.parametrize(
  "text, words", [("{", "is damaged"), ("[]", "is no configuration of a run")]
)
def test_a_damaged_config_is_said(tiny, text, words):
  run(tiny("clean"))
  (resolve(tiny("clean")).directory / "config.json").write_text(text)
  with pytest.raises(UserError, match=f"config.json {words}"):
    run(tiny("clean"))


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
  with pytest.raises(UserError, match="cannot write to .*another --runs_dir"):
    run(tiny("clean", runs_dir=str(path)))


def test_no_benchmark_to_reuse(tiny):
  with pytest.raises(UserError, match="no finished run of experiments.clean"):
    run(tiny("ban", benchmark="reuse"))


def test_a_loss_that_is_not_finite_keeps_the_last_good_checkpoint(tiny):
  config = tiny("clean", weight_decay=1e3, epochs=40, checkpoint_seconds=0.0)
  with pytest.raises(
    UserError, match=r"(the loss is|not finite).* step \d+.*another --run_name"
  ):
    run(config)
  directory = resolve(config).directory
  for line in (directory / "metrics.jsonl").read_text().splitlines():
    assert np.isfinite(json.loads(line)["loss"])
  resolved = resolve(config)
  splits = data.load("digits")
  program = build(resolved, splits)
  carry = jax.eval_shape(program.create, jax.random.key(0), splits.train.images)
  with Checkpoints(directory / "checkpoints", read_only=True) as kept:
    found = kept.restore(carry.state)
  assert found.step > 0
  for leaf in jax.tree.leaves(found.state.params):
    assert np.isfinite(leaf).all()
  assert not (directory / "results.json").exists()


def test_no_device_memory_names_a_batch_size_to_try(tiny, monkeypatch):
  def full(*args, **kwargs):
    raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory")

  monkeypatch.setattr(member, "train", full)
  with pytest.raises(UserError, match="try --batch_size=68"):
    run(tiny("clean", batch_size=140))


def test_other_device_errors_keep_their_traceback(tiny, monkeypatch):
  def broken(*args, **kwargs):
    raise jax.errors.JaxRuntimeError("INTERNAL: other")

  monkeypatch.setattr(member, "train", broken)
  with pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL"):
    run(tiny("clean"))


@pytest.fixture
def handlers():
  """Puts signal handlers back, which a command line takes for itself."""
  numbers = (signal.SIGINT, signal.SIGTERM)
  before = [signal.getsignal(number) for number in numbers]
  yield
  for number, handler in zip(numbers, before, strict=True):
    signal.signal(number, handler)


def test_a_command_without_memory_says_so_in_one_line(handlers, capsys):
  def full():
    raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory")

  assert cli.guarded(full) == 2
  err = capsys.readouterr().err
  assert err.startswith("error: the device has no memory left")
  assert err.count("\n") == 1

  def broken():
    raise jax.errors.JaxRuntimeError("INTERNAL: other")

  with pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL"):
    cli.guarded(broken)


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
  with pytest.raises(UserError, match="none to measure the attack on"):
    run(tiny("ban", dataset=str(path), batch_size=8, model="cnn"))
