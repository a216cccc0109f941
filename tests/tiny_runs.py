"""Runs of a second, for the tests of runs and of scripts."""

import dataclasses
import pathlib
import shutil

import pytest

from bdjax import runs as runs_lib
from bdjax.attacks import ATTACKS
from bdjax.runs import RunConfig, figures
from bdjax.runs.config import fields


def make_config(runs_dir, experiment, **kwargs) -> RunConfig:
  """Return the configuration of a tiny run.

  Args:
    runs_dir: of the runs.
    experiment: an attack's name, or `clean`.
    **kwargs: settings of the run and of the attack.
  """
  values = {"runs_dir": str(runs_dir), "width": 4, "epochs": 2}
  values |= {"batch_size": 256} | kwargs
  names = {field.name for field in fields()}
  names |= {"axes", "data_sha256"}
  own = {k: v for k, v in values.items() if k in names}
  if experiment == "clean":
    return RunConfig(**own)
  given = {k: v for k, v in values.items() if k not in names}
  swept = {name for name, _ in own.get("axes", ())}
  if "eval_draws" not in swept:
    given = {"eval_draws": 2} | given
  return RunConfig(experiment, ATTACKS[experiment].settings(**given), **own)


@pytest.fixture
def tiny(tmp_path):
  """Make configurations of runs that take a second."""

  def make(experiment, **kwargs):
    values = {"runs_dir": tmp_path / "runs"} | kwargs
    return make_config(values.pop("runs_dir"), experiment, **values)

  return make


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
  """A group of two backdoored runs and a clean run, each of a second."""
  path = tmp_path_factory.mktemp("runs")
  common = {"epochs": 6, "batch_size": 64}
  runs_lib.run(make_config(path, "clean", **common))
  badnets = make_config(path, "badnets", **common, eval_draws=1, seeds=2)
  runs_lib.run(badnets)
  return path


@pytest.fixture
def copied(trained, tmp_path):
  """A copy of `trained` that a test may write to."""
  return pathlib.Path(shutil.copytree(trained, tmp_path / "runs"))


@pytest.fixture(autouse=True)
def cheap(request, monkeypatch):
  """Leave figures out where a test does not look at them: half of a run."""
  if "figures" not in request.keywords:
    monkeypatch.setattr(figures, "draw_run", lambda *args: None)
    monkeypatch.setattr(figures, "draw_defense", lambda *args: None)


def replace_settings(config, **kwargs):
  """Return a configuration with other settings of its attack."""
  settings = dataclasses.replace(config.settings, **kwargs)
  return dataclasses.replace(config, settings=settings)
