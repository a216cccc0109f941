import pathlib
import shutil

import pytest

from experiments.common import Config, run


@pytest.fixture(scope="session")
def runs(tmp_path_factory):
  """A group of two backdoored runs and a clean run, each of a second."""
  place = tmp_path_factory.mktemp("runs")
  common = {"runs_dir": str(place), "width": 4, "epochs": 6, "batch_size": 64}
  run(Config("clean", **common))
  run(Config("badnets", **common, benchmark="none", seeds=2))
  return place


@pytest.fixture
def fresh(runs, tmp_path):
  """A copy that a test may write to."""
  return pathlib.Path(shutil.copytree(runs, tmp_path / "runs"))
