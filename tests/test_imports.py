import subprocess
import sys

import pytest

from bdjax import plots

# What a run needs only when it draws or scores, and what takes long to import.
LATE = {"matplotlib", "scipy.stats", "tensorflow_datasets"}


def test_a_run_trains_before_it_imports_what_it_draws_and_scores_with():
  code = "import sys, experiments.cli; print(*sys.modules)"
  done = subprocess.run(
    [sys.executable, "-c", code], capture_output=True, text=True, check=True
  )
  assert not LATE & set(done.stdout.split())


def test_every_figure_is_found_when_it_is_asked_for():
  assert all(callable(getattr(plots, name)) for name in plots.__all__)
  with pytest.raises(AttributeError, match="no_such_figure"):
    _ = plots.no_such_figure
