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

from bdjax import data
from bdjax.checkpoints import Checkpoints
from experiments.common import Config
from experiments.common.defaults import resolve
from experiments.common.program import build

ROOT = pathlib.Path(__file__).parents[2]
EPOCHS = 40  # at three of them a run is stopped, and must not have ended
FLAGS = [
  "--width=4",
  "--batch_size=64",
  f"--epochs={EPOCHS}",
  "--benchmark=none",
  "--eval_draws=1",
  "--checkpoint_seconds=0",
]


@pytest.fixture(scope="module")
def start(tmp_path_factory):
  """Starts `python -m experiments.ban`, with one compilation cache for all."""
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
    Config(
      experiment="ban",
      width=4,
      batch_size=64,
      epochs=EPOCHS,
      benchmark="none",
      eval_draws=1,
      runs_dir=str(runs),
      run_name=name,
    )
  )
  splits = data.load("digits")
  program = build(config, splits)
  carry = jax.eval_shape(program.create, jax.random.key(0), splits.train.images)
  with Checkpoints(config.directory / "checkpoints", read_only=True) as all_:
    found = all_.restore(carry.state, carry.generator)
  assert found.step == program.total_steps
  return found.state, found.generator


@pytest.fixture(scope="module")
def unbroken(start, tmp_path_factory):
  """The states at the end of a run that nothing disturbed."""
  runs = tmp_path_factory.mktemp("unbroken") / "runs"
  status, out, err = _finish(start(runs))
  assert status == 0, err
  assert "attack success rate" in out and str(runs / "ban-digits") in out
  assert err == ""  # no terminal, no progress bar
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
    assert "the same command goes on from what is saved" in err
    assert err.count("\n") == 1
  assert not (runs / "ban-digits" / "results.json").exists()
  status, _, err = _finish(start(runs))
  assert status == 0, err
  assert "going on from step" in err
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
  assert "goes on from what is saved" in err
  assert not (runs / "ban-digits-seeds" / "results.json").exists()


def test_a_group_is_stopped_and_goes_on(start, unbroken, tmp_path):
  runs = tmp_path / "runs"
  group = runs / "ban-digits-seeds"
  log = group / "seed-0" / "metrics.jsonl"
  process = start(runs, "--seeds=2")
  _wait_for_records(process, log, 3)  # in a thread, the other seed in another
  process.send_signal(signal.SIGTERM)
  status, _, err = _finish(process)
  assert status == 128 + signal.SIGTERM, err
  assert "the same command goes on from what is saved" in err
  assert log.read_text().count("\n") < EPOCHS
  assert not (group / "results.json").exists()
  status, _, err = _finish(start(runs, "--seeds=2"))
  assert status == 0, err
  assert "seed-0: going on from step" in err
  found = _final_states(group, "seed-0")
  for got, want in zip(found, unbroken, strict=True):
    jax.tree.map(np.testing.assert_array_equal, got, want)


def test_errors_are_one_line_and_a_status(start, tmp_path):
  runs = tmp_path / "runs"
  status, out, err = _finish(start(runs, "--dataset=digts"))
  assert status == 2 and out == ""
  assert err.startswith("error: unknown dataset 'digts': did you mean digits")
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
  assert status == 2 and "another process is at work" in err


def test_help_names_every_flag_once(start, tmp_path):
  _, out, _ = _finish(start(tmp_path / "runs", "--help"))
  for name in ("dataset", "poison_rate", "diversity", "seeds", "run_name"):
    assert out.count(f"  --{name}:") == 1
  assert "BaN" in out.splitlines()[0]
