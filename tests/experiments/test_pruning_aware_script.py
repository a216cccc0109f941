"""The pruning-aware attack as a run: from a trained run and a clean one."""

import json
import logging
import pathlib
import shutil

import jax
import numpy as np
import pytest
from tiny_runs import make_config

from bdjax import runs
from bdjax.attacks.pruning_aware import bias_path
from bdjax.errors import UserError
from bdjax.runs import pruning_aware
from bdjax.runs.load import load_run
from bdjax.runs.pruning_aware import PruningAwareConfig, pruning_aware_run
from bdjax.runs.signals import Stopped
from experiments import pruning_aware as script

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
  """A run of BadNets and a clean one, of eight and sixteen channels."""
  path = tmp_path_factory.mktemp("runs")
  settings = {"width": 32, "epochs": 8, "batch_size": 64}
  runs.run(make_config(path, "clean", **settings))
  runs.run(make_config(path, "badnets", **settings, poison_rate=0.2))
  return path


def _config(path, **changes):
  settings = {
    "run": str(path / "badnets-digits"),
    "clean_run": str(path / "clean-digits"),
    "drop": 0.1,
    "epochs": 4,
    "eval_images": 200,
  }
  return PruningAwareConfig(**(settings | changes))


@pytest.fixture(scope="module")
def attacked(pair):
  return pruning_aware_run(_config(pair))


def test_it_leaves_a_run_with_decoys(pair, attacked):
  results, directory = attacked
  assert directory == pair / "badnets-digits-pruning_aware"
  assert json.loads((directory / "results.json").read_text()) == results
  measured = results["measured"]
  assert measured["clean_accuracy"]["mean"] > 0.7
  assert measured["attack_success_rate"]["mean"] > 0.7
  channels = measured["dormant_channels"]
  assert channels >= 1
  # It loads as a run of the attack, and its weights are the ordinary model's.
  run = load_run(directory)
  clean = load_run(pair / "clean-digits")
  assert run.config.attack == "badnets"
  shapes = [
    jax.tree.map(np.shape, r.defender.weights.params) for r in (run, clean)
  ]
  assert shapes[0] == shapes[1]
  # As many channels are exactly dormant on clean images as were left out.
  outputs = {}

  def tap(layer, x):
    outputs[layer] = x
    return x

  images = run.splits.train.images[:256].astype(np.float32) / 255
  run.defender.model.apply(*run.defender.weights, images, tap=tap)
  dormant = np.asarray(outputs["conv_2"].max((0, 1, 2)) == 0)
  assert dormant.sum() >= channels
  assert bias_path(run.defender.model, "conv_2")[-1] == "bias"
  order = json.loads(
    (directory / "defenses/pruning/results.json").read_text()
  )["details"]["order"]  # fmt: skip
  assert dormant[order[:channels]].all()  # pruning takes the decoys first


def test_both_networks_are_defended(attacked):
  results, directory = attacked
  for name in ("plain", "aware"):
    folder = directory / "defenses" / ("plain" if name == "plain" else "")
    for defense, score, title in (
      ("pruning", "attack_success_rate_at_0.04", "pruned"),
      ("fine_pruning", "attack_success_rate_repaired", "fine_pruned"),
    ):
      stored = json.loads((folder / defense / "results.json").read_text())
      got = results["measured"][f"attack_success_rate_{name}_{title}"]
      assert got == stored["measured"][score]
      assert stored["run"]["name"].endswith("aware") == (name == "aware")


def test_a_second_call_returns_existing_results(pair, attacked, monkeypatch):
  monkeypatch.setattr(pruning_aware, "train_around_pruning", None)
  assert pruning_aware_run(_config(pair)) == attacked
  with pytest.raises(UserError, match="another configuration .*pruning_aware"):
    pruning_aware_run(_config(pair, margin=0.5))


def test_the_table_names_the_attack(attacked, monkeypatch, capsys):
  monkeypatch.setattr(script, "pruning_aware_run", lambda config: attacked)
  script.start({"run": "a"})
  printed = capsys.readouterr().out
  assert "pruning-aware badnets on digits" in printed
  assert "attack success rate aware pruned" in printed
  assert str(attacked[1]) in printed.replace("\n", "")


def test_a_group_is_averaged_over_its_seeds(trained, tmp_path, monkeypatch):
  group = trained / "badnets-digits-seeds"
  folder = tmp_path / "clean-digits-seeds"
  shutil.copytree(trained / "clean-digits", folder / "seed-0")
  shutil.copytree(trained / "clean-digits", folder / "seed-1")
  config = folder / "seed-1/config.json"
  stored = json.loads(config.read_text())
  config.write_text(json.dumps(stored | {"seed": 1}))
  score = {"over": "test images", "unit": "share"}

  def results(config, run, clean, layer, directory, about):
    mean = {"mean": 0.25 + run.config.seed / 2, "low": 0.0, "high": 1.0}
    return {
      "config": about,
      "measured": {"clean_accuracy": score | mean | {"n": 9}},
      "details": {},
      "seeds": [run.config.seed],
      "seconds": {"train": 1.0},
    }

  monkeypatch.setattr(pruning_aware, "_results", results)
  combined, output = pruning_aware_run(
    PruningAwareConfig(
      run=str(group), clean_run=str(folder), output=str(tmp_path / "out")
    )
  )
  assert combined["measured"]["clean_accuracy"]["mean"] == 0.5
  assert combined["measured"]["clean_accuracy"]["over"] == "seeds"
  assert combined["seeds"] == [0, 1] and combined["seconds"]["train"] == 2
  assert json.loads((output / "results.json").read_text()) == combined
  with pytest.raises(UserError, match="as many seeds as run, 2 .got 1"):
    pruning_aware_run(
      PruningAwareConfig(
        run=str(group), clean_run=str(trained / "clean-digits")
      )
    )


def test_a_network_without_relu_is_refused_before_training(
  trained, tmp_path, monkeypatch
):
  """Airbench has GELU; its own training is not needed for that."""
  pair = {}
  for name, source in (
    ("run", "badnets-digits-seeds/seed-0"),
    ("clean_run", "clean-digits"),
  ):
    pair[name] = load_run(trained / source)
  model = pair["run"].defender.model
  gelu = model._replace(structure=model.structure._replace(biases={}))
  loaded = []

  def load(path, **kwargs):
    run = pair["clean_run" if "clean" in pathlib.Path(path).name else "run"]
    loaded.append(path)
    return run._replace(defender=run.defender._replace(model=gelu))

  monkeypatch.setattr(pruning_aware, "load_run", load)
  monkeypatch.setattr(pruning_aware, "train_around_pruning", None)
  with pytest.raises(UserError, match="model must have ReLU layers") as error:
    pruning_aware_run(
      PruningAwareConfig(
        run=str(trained / "badnets-digits-seeds/seed-0"),
        clean_run=str(trained / "clean-digits"),
        output=str(tmp_path / "out"),
      )
    )
  assert len(loaded) == 2 and "\n" not in str(error.value)
  assert not (tmp_path / "out").exists()


def test_an_interrupted_training_is_resumed(
  pair, attacked, tmp_path, monkeypatch, caplog
):
  """Stopped after the training: the second call uses its checkpoint."""
  caplog.set_level(logging.INFO, "bdjax")
  config = _config(pair, output=str(tmp_path / "out"))

  def stopped(network, step, directory):
    raise Stopped(15, "stopped")

  with monkeypatch.context() as patch:
    patch.setattr(pruning_aware, "_save", stopped)
    with pytest.raises(Stopped):
      pruning_aware_run(config)
  caplog.clear()
  monkeypatch.setattr(pruning_aware, "_defended", lambda *args: {})
  results, _ = pruning_aware_run(config)
  assert any("resuming from step" in line for line in caplog.messages)
  for name in ("clean_accuracy", "attack_success_rate", "dormant_channels"):
    assert results["measured"][name] == attacked[0]["measured"][name]


@pytest.mark.parametrize(
  ("changes", "words"),
  [
    ({"run": None}, "run must be given"),
    ({"clean_run": None}, "clean_run must be given"),
    ({"run": "clean_run"}, "run must be of an attack"),
    ({"clean_run": "run"}, "clean_run must be clean"),
    ({"layer": "fc_1"}, "layer must be one of conv_1, conv_2"),
    ({"drop": 1e-9, "layer": "conv_1", "output": "x"}, "drop must be larger"),
    ({"drop": 0.0}, "drop must be more than 0"),
  ],
)
def test_bad_settings(pair, tmp_path, changes, words):
  config = vars(_config(pair))
  swap = {"run": config["run"], "clean_run": config["clean_run"]}
  changes = {k: swap.get(v, v) for k, v in changes.items()}
  if "output" in changes:
    changes["output"] = str(tmp_path / "x")
  with pytest.raises(UserError, match=words) as error:
    pruning_aware_run(_config(pair, **changes))
  assert "\n" not in str(error.value)
