"""Experiments as a user runs them: processes, signals, exit statuses."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from tiny_runs import make_config

from bdjax import data
from bdjax.checkpoints import Checkpoints
from bdjax.runs.resolve import resolve
from bdjax.runs.setup import build

ROOT = pathlib.Path(__file__).parents[2]
EPOCHS = 40  # at three of them a run is stopped, and must not have ended
FLAGS = [
  "--width=4",
  "--batch_size=64",
  f"--epochs={EPOCHS}",
  "--eval_draws=1",
  "--checkpoint_seconds=0",
]


pytestmark = pytest.mark.slow  # each starts several processes


@pytest.fixture(scope="module")
def start(tmp_path_factory):
  """Start `python -m experiments.ban`, with one compilation cache for all."""
  cache = tmp_path_factory.mktemp("cache")
  env = os.environ | {
    "PYTHONPATH": str(ROOT),
    "XDG_CACHE_HOME": str(cache),
    "XLA_FLAGS": "",
  }
  env.pop("JAX_COMPILATION_CACHE_DIR", None)

  def popen(runs, *flags):
    return subprocess.Popen(
      [
        sys.executable,
        "-m",
        "experiments.ban",
        f"--runs_dir={runs}",
        *FLAGS,
        *flags,
      ],
      env=env,
      cwd=runs.parent,
      text=True,
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
    )

  return popen


def _finish(process):
  out, err = process.communicate(timeout=120)
  return process.returncode, out, err


def _final_states(runs, name="ban-digits"):
  config = resolve(
    make_config(
      runs,
      "ban",
      batch_size=64,
      epochs=EPOCHS,
      eval_draws=1,
      run_name=name,
    )
  )
  splits = data.load("digits")
  setup = build(config, splits)
  carry = jax.eval_shape(setup.init, jax.random.key(0), splits.train.images)
  path = config.directory / "checkpoints"
  with Checkpoints(path, read_only=True) as checkpoints:
    saved = checkpoints.restore(carry.classifier, carry.generator)
  assert saved.step == setup.total_steps
  return saved.state, saved.generator


@pytest.fixture(scope="module")
def unbroken(start, tmp_path_factory):
  """Return the states at the end of a run that nothing disturbed."""
  runs = tmp_path_factory.mktemp("unbroken") / "runs"
  status, out, err = _finish(start(runs))
  assert status == 0, err
  assert "attack success rate" in out and str(runs / "ban-digits") in out
  # No terminal, no progress bar: only the word on the missing clean run.
  assert err.startswith("no clean run to compare with") and err.count("\n") == 1
  return _final_states(runs)


def _wait_for_records(process, log, count):
  deadline = time.monotonic() + 100
  while time.monotonic() < deadline and process.poll() is None:
    if log.exists() and log.read_text().count("\n") >= count:
      return
    time.sleep(0.01)
  raise AssertionError(f"no {count} records: {process.communicate()}")


@pytest.mark.parametrize(
  "number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL]
)
def test_stopped_and_resumed_equals_unbroken(start, unbroken, tmp_path, number):
  runs = tmp_path / "runs"
  log = runs / "ban-digits" / "metrics.jsonl"
  process = start(runs)
  _wait_for_records(process, log, 3)
  process.send_signal(number)
  status, _, err = _finish(process)
  if number == signal.SIGKILL:
    assert status == -signal.SIGKILL
  else:
    assert status == 128 + number
    assert "the same command resumes it" in err
    assert err.count("\n") == 1
  assert not (runs / "ban-digits" / "results.json").exists()
  status, _, err = _finish(start(runs))
  assert status == 0, err
  assert "resuming from step" in err
  steps = [json.loads(line)["step"] for line in log.read_text().splitlines()]
  assert steps == sorted(set(steps)) and len(steps) == EPOCHS
  for got, want in zip(_final_states(runs), unbroken, strict=True):
    jax.tree.map(np.testing.assert_array_equal, got, want)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_in_the_last_call_or_after_it_ends_a_group(
  start, tmp_path, number
):
  runs = tmp_path / "runs"
  log = runs / "ban-digits-seeds" / "seed-0" / "metrics.jsonl"
  process = start(runs, "--seeds=2", "--epochs=3")
  _wait_for_records(process, log, 3)  # the third is the last
  process.send_signal(number)
  status, _, err = _finish(process)
  assert status == 128 + number, err
  assert "the same command resumes it" in err
  assert not (runs / "ban-digits-seeds" / "results.json").exists()


def test_a_group_is_stopped_and_goes_on(start, unbroken, tmp_path):
  runs = tmp_path / "runs"
  group = runs / "ban-digits-seeds"
  log = group / "seed-0" / "metrics.jsonl"
  process = start(runs, "--seeds=2")
  _wait_for_records(process, log, 3)
  process.send_signal(signal.SIGTERM)
  status, _, err = _finish(process)
  assert status == 128 + signal.SIGTERM, err
  assert "the same command resumes it" in err
  assert log.read_text().count("\n") < EPOCHS
  assert not (group / "results.json").exists()
  status, _, err = _finish(start(runs, "--seeds=2"))
  assert status == 0, err
  assert "resuming from step" in err
  found = _final_states(group, "seed-0")
  for got, want in zip(found, unbroken, strict=True):
    jax.tree.map(np.testing.assert_array_equal, got, want)


def test_errors_are_one_line_and_a_status(start, tmp_path):
  runs = tmp_path / "runs"
  status, out, err = _finish(start(runs, "--dataset=digts"))
  assert status == 2 and out == ""
  assert err.startswith("error: --dataset must be one of")
  assert "did you mean digits" in err
  assert err.count("\n") == 1
  assert not runs.exists()


def test_two_processes_at_one_run(start, tmp_path):
  runs = tmp_path / "runs"
  first = start(runs)
  _wait_for_records(first, runs / "ban-digits" / "metrics.jsonl", 1)
  first.send_signal(signal.SIGSTOP)  # else it might end before the other starts
  status, _, err = _finish(start(runs))
  first.kill()
  first.communicate()
  assert status == 2 and "must not be used by two processes" in err
