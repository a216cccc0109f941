import gzip
import json

import jax
import pytest

from bdjax.defenses.pruning import PruningSettings
from bdjax.errors import UserError
from bdjax.runs import DefenseConfig, defend, profiling, run


def _events(path):
  """Return the events of the one trace in a folder."""
  (trace,) = path.glob("plugins/profile/*/perfetto_trace.json.gz")
  return json.loads(gzip.decompress(trace.read_bytes()))["traceEvents"]


@pytest.fixture
def calls(monkeypatch):
  """Record what the profiler is told, in order."""
  told = []
  monkeypatch.setattr(
    jax.profiler, "start_trace", lambda path, **_: told.append(str(path))
  )
  monkeypatch.setattr(jax.profiler, "stop_trace", lambda: told.append("stop"))
  return told


def test_a_training_is_traced_from_its_second_call_to_its_fourth(calls):
  with profiling.TracedCalls("there") as counter:
    seen = [(counter.count(), list(calls)) for _ in range(6)]
  assert seen == [
    (True, ["there"]),
    (False, ["there"]),
    (False, ["there"]),
    (True, ["there", "stop"]),
    (False, ["there", "stop"]),
    (False, ["there", "stop"]),
  ]
  assert calls == ["there", "stop"]


def test_a_trace_ends_with_a_training_that_ends_early(calls):
  with pytest.raises(KeyError), profiling.TracedCalls("there") as counter:
    counter.count()
    raise KeyError
  assert calls == ["there", "stop"]
  with profiling.TracedCalls("there"):
    pass
  with profiling.TracedCalls(None) as counter:
    counter.count()
  with profiling.traced(None):
    pass
  assert calls == ["there", "stop"]


@pytest.mark.slow
def test_a_traced_training_has_the_same_results(tiny, tmp_path):
  path = tmp_path / "new" / "trace"
  config = {"epochs": 6}
  plain = run(tiny("badnets", **config, run_name="plain"))
  traced = run(
    tiny("badnets", **config, run_name="traced", profile=str(path))
  )
  assert traced["measured"] == plain["measured"]
  assert traced["config"] == plain["config"]
  assert _events(path)


@pytest.mark.slow
def test_a_traced_defense_has_the_same_results(trained, tmp_path):
  member = str(trained / "badnets-digits-seeds" / "seed-0")
  plain, traced = [
    defend(
      "pruning",
      PruningSettings(),
      DefenseConfig(run=member, output=str(tmp_path / name), profile=path),
    )
    for name, path in (("plain", None), ("traced", str(tmp_path / "trace")))
  ]
  assert traced["measured"] == plain["measured"]
  assert traced["config"] == plain["config"]
  assert _events(tmp_path / "trace")


def test_a_trace_that_cannot_be_written_is_said_before_anything_else(
  tiny, tmp_path
):
  file = tmp_path / "file"
  file.touch()
  path = str(file / "trace")
  for start in (
    lambda: run(tiny("clean", profile=path)),
    lambda: defend(
      "pruning", PruningSettings(), DefenseConfig(run="none", profile=path)
    ),
  ):
    with pytest.raises(UserError, match="cannot write to .*profile") as error:
      start()
    assert "\n" not in str(error.value)
  assert [p.name for p in tmp_path.iterdir()] == ["file"]
