"""Seconds from the start of a command to the end of its first training steps.

python -m benchmarks.startup

`python -m experiments.ban --dataset=digits`, as a process of its own, until
`metrics.jsonl` has its first line: imports, data, compilation, and one call of
steps. First with an empty compilation cache, then with the one that the first
start left. Claimed for a second start are 5 seconds, aimed at 2.
"""

import os
import pathlib
import subprocess
import sys
import tempfile
import time

from benchmarks import script
from benchmarks.timing import Comparison

COMMAND = ("-m", "experiments.ban", "--dataset=digits", "--epochs=1")


def run_to_first_steps(cache: str) -> None:
  """Run the command until its first training steps are done.

  Args:
    cache: the user's cache directory, where compiled programs are kept.

  Raises:
    RuntimeError: the command failed.
  """
  environment = dict(os.environ)
  environment.pop("JAX_COMPILATION_CACHE_DIR", None)  # would be used instead
  environment["XDG_CACHE_HOME"] = cache
  with tempfile.TemporaryDirectory() as runs:
    log = pathlib.Path(runs, "run", "metrics.jsonl")
    process = subprocess.Popen(
      [sys.executable, *COMMAND, f"--runs_dir={runs}", "--run_name=run"],
      env=environment,
      stdout=subprocess.DEVNULL,
      stderr=subprocess.DEVNULL,
    )
    while not (log.exists() and log.stat().st_size):
      if process.poll() is not None and not log.exists():
        raise RuntimeError(f"the command ended with {process.returncode}")
      time.sleep(0.005)
    process.kill()
    process.wait()


def run_with_empty_cache() -> None:
  """Run the command to its first steps with an empty cache."""
  with tempfile.TemporaryDirectory() as cache:
    run_to_first_steps(cache)


def comparisons(options: script.Options):
  """Compare a second start, a first one and the imports alone."""
  del options
  with tempfile.TemporaryDirectory() as cache:

    def imports():
      code = "import jax, experiments.cli"
      subprocess.run([sys.executable, "-c", code], check=True)

    yield Comparison(
      "start to first training steps, " + " ".join(("python", *COMMAND)),
      {
        "second start": lambda: run_to_first_steps(cache),
        "first start, empty cache": run_with_empty_cache,
        "imports alone": imports,
      },
      item="start",
      goal="second start at most 5 s, aimed at 2 s",
    )


if __name__ == "__main__":
  script.main(comparisons)
