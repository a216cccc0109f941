import gzip
import json

import jax
import pytest

from bdjax.errors import UserError
from experiments import csaw, defending, pruning, scan
from experiments.common import Config, profiling
from experiments.common.runner import run


def _events(place):
  """Of the one trace in a folder."""
  (path,) = place.glob("plugins/profile/*/perfetto_trace.json.gz")
  return json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]


@pytest.fixture
def calls(monkeypatch):
  """What the profiler is told, in order."""
  told = []
  monkeypatch.setattr(
    jax.profiler, "start_trace", lambda place, **_: told.append(str(place))
  )
  monkeypatch.setattr(jax.profiler, "stop_trace", lambda: told.append("stop"))
  return told


def test_a_training_is_traced_from_its_second_call_to_its_fourth(calls):
  with profiling.Calls("there") as count:
    seen = [(count.count(), list(calls)) for _ in range(6)]
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
  with pytest.raises(KeyError), profiling.Calls("there") as count:
    count.count()
    raise KeyError
  assert calls == ["there", "stop"]
  with profiling.Calls("there"):
    pass
  with profiling.Calls(None) as count:
    count.count()
  with profiling.traced(None):
    pass
  assert calls == ["there", "stop"]


def test_a_traced_training_has_the_same_results(tmp_path):
  place = tmp_path / "new" / "trace"
  config = {"runs_dir": str(tmp_path), "width": 4, "epochs": 6}
  config |= {"batch_size": 256, "benchmark": "none"}
  plain = run(Config("badnets", **config, run_name="plain"))
  traced = run(
    Config("badnets", **config, run_name="traced", profile=str(place))
  )
  assert traced["measured"] == plain["measured"]
  assert traced["config"] == plain["config"]
  assert _events(place)


def test_a_traced_defense_has_the_same_results(fresh, tmp_path):
  member = str(fresh / "badnets-digits-seeds" / "seed-0")
  plain, traced = [
    defending.run(
      pruning.DEFENSE,
      pruning.Config(run=member, output=str(tmp_path / name), profile=place),
    )
    for name, place in (("plain", None), ("traced", str(tmp_path / "trace")))
  ]
  assert traced["measured"] == plain["measured"]
  assert traced["config"] == plain["config"]
  assert _events(tmp_path / "trace")


def test_a_trace_that_cannot_be_written_is_said_before_anything_else(tmp_path):
  file = tmp_path / "file"
  file.touch()
  place = str(file / "trace")
  starts = (
    lambda: run(Config("clean", runs_dir=str(tmp_path / "r"), profile=place)),
    lambda: defending.run(
      pruning.DEFENSE, pruning.Config(run="none", profile=place)
    ),
    lambda: scan.run(scan.Config(weights="none.h5", profile=place)),
    lambda: csaw.run(
      csaw.Config(weights="none.h5", data_dir="none", profile=place)
    ),
  )
  for start in starts:
    with pytest.raises(UserError, match="cannot write to .*--profile") as error:
      start()
    assert "\n" not in str(error.value)
  assert [p.name for p in tmp_path.iterdir()] == ["file"]
