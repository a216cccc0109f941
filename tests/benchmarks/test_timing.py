import json

import numpy as np
import pytest

from benchmarks import environment, roofline, timing


def test_ratios_by_hand():
  seconds = {"ours": [1.0, 2.0, 4.0], "a": [3.0, 4.0, 4.0], "b": [1.0] * 3}
  got = timing.ratios(seconds)
  # Turn by turn 3, 2, 1 and 1, 1/2, 1/4: not the ratio of the medians.
  assert got == {"a": (2.0, 1.0, 3.0), "b": (0.5, 0.25, 1.0)}


def test_functions_are_called_in_turns_after_one_call_each():
  calls = []
  functions = {name: lambda name=name: calls.append(name) for name in "ab"}
  seconds = timing.interleaved(functions, repeats=3)
  assert calls == list("ab" * 4)
  assert {name: len(s) for name, s in seconds.items()} == {"a": 3, "b": 3}


@pytest.fixture
def clock(monkeypatch):
  """A clock that moves only when a function takes its time."""
  now = [0.0]
  monkeypatch.setattr(timing.time, "perf_counter", lambda: now[0])
  monkeypatch.setattr(environment, "describe", lambda: {"benchmark": "x"})
  monkeypatch.setattr(environment, "cpu_seconds", lambda: (0.0, 0.0))

  def takes(seconds):
    def run():
      now[0] += seconds

    return run

  return takes


def test_seconds_are_given_for_an_item_and_for_the_whole_work(clock):
  comparison = timing.Comparison(
    "claim",
    {"ours": clock(8.0), "slow": clock(6.0)},
    item="step",
    items=4,
    parts={"slow": 0.25},
  )
  line = timing.measure(comparison, repeats=2)
  # A call of `slow` does a quarter of the four steps.
  assert line["seconds"] == {"ours": [2.0, 2.0], "slow": [6.0, 6.0]}
  assert line["ratios"] == {"slow": {"median": 3.0, "low": 3.0, "high": 3.0}}
  assert line["benchmark"] == "x" and "share" not in line
  assert json.loads(json.dumps(line)) == line


def test_a_machine_that_does_not_say_what_others_take(clock, monkeypatch):
  monkeypatch.setattr(environment, "cpu_seconds", lambda: None)
  line = timing.measure(timing.Comparison("x", {"a": clock(1.0)}), 1)
  assert "others" not in line


def test_growth_with_the_size(clock):
  comparison = timing.Comparison(
    "claim",
    {"1": clock(3.0), "2": clock(12.0), "4": clock(48.0)},
    sizes={"1": (1.0, 5.0), "2": (2.0, 10.0), "4": (4.0, 20.0)},
  )
  line = timing.measure(comparison, repeats=1)
  np.testing.assert_allclose(line["slope"], 2.0, rtol=1e-6)
  np.testing.assert_allclose(line["operations_slope"], 1.0, rtol=1e-6)


def test_share_of_the_ceiling_that_binds():
  ceiling = {"operations": 100.0, "bytes": 10.0}
  got = roofline.share(50.0, 1.0, 2.0, ceiling)
  assert (got["bound"], got["share"]) == ("arithmetic", 0.25)
  got = roofline.share(50.0, 10.0, 2.0, ceiling)
  assert (got["bound"], got["share"]) == ("memory", 0.5)


def test_ceilings_are_measured():
  got = roofline.ceilings(side=16)
  assert got["operations"] > 0 and got["bytes"] > 0


def test_a_matrix_fills_the_device(monkeypatch):
  assert roofline.matrix_side() == 2048
  monkeypatch.setattr(roofline.jax, "default_backend", lambda: "gpu")
  assert roofline.matrix_side() == 8192


def test_bytes_of_arrays():
  trees = ({"a": np.zeros((2, 3), np.float32)}, [np.zeros(5, np.uint8)])
  assert roofline.size(*trees) == 29


def test_environment_names_the_command_and_an_accelerator(monkeypatch):
  got = environment.describe()
  assert got["versions"].keys() >= {"python", "jax", "numpy"}
  assert got["command"].startswith("python -m")
  monkeypatch.setattr(timing.jax, "default_backend", lambda: "gpu")
  kind = timing.jax.devices()[0].device_kind
  assert environment.describe()["machine"] == f"{kind}; {got['machine']}"


def test_share_of_other_processes(monkeypatch):
  monkeypatch.setattr(timing.os, "cpu_count", lambda: 2)
  # 7 CPU seconds in 5 seconds of two cores, 4 of them ours.
  got = timing.others((100.0, 10.0), (107.0, 14.0), 5.0)
  np.testing.assert_allclose(got, 0.3)
  # Clock ticks are coarse: never below nothing.
  assert timing.others((1.0, 1.0), (2.0, 2.1), 1.0) == 0.0


def test_cpu_time_is_read():
  got = environment.cpu_seconds()
  if got is None:
    pytest.skip("the machine does not say")
  whole, own = got
  assert whole >= own > 0


def test_durations():
  got = [timing.duration(s) for s in (12.34, 0.1234, 1.5e-3, 2.5e-6)]
  assert got == ["12.3 s", "123 ms", "1.5 ms", "2.5 us"]
