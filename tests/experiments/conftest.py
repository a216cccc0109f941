import pytest

from experiments.common import Config


@pytest.fixture
def tiny(tmp_path):
  """Builds configurations of runs that take a second."""

  def make(experiment, **kwargs):
    defaults = {
      "runs_dir": str(tmp_path / "runs"),
      "width": 4,
      "epochs": 2,
      "batch_size": 256,
    }
    if experiment != "clean":
      defaults |= {"benchmark": "none", "eval_draws": 2}
    return Config(experiment=experiment, **(defaults | kwargs))

  return make
