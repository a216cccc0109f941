"""Tests of bdjax.checkpoints: nothing is lost, nothing half-written is used."""

import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bdjax.checkpoints import Checkpoints
from bdjax.errors import UserError
from bdjax.training import TrainState


def make_state(step: int = 0, width: int = 5, tx: Any = None) -> TrainState:
  """A state with every kind of node: NamedTuples, empty ones, scalars."""
  tx = tx or optax.chain(
    optax.add_decayed_weights(1e-4),
    optax.sgd(optax.cosine_decay_schedule(0.1, 10), momentum=0.9),
  )
  key = jax.random.fold_in(jax.random.key(0), step)
  params = {
    "conv": {"kernel": jax.random.normal(key, (3, 3, 1, width))},
    "head": {
      "kernel": jax.random.normal(key, (width, 2)),
      "bias": jnp.array([jnp.nan, -0.0]),
    },
  }
  return TrainState(
    step=jnp.int32(step),
    params=params,
    batch_stats={"conv": {"mean": jnp.ones((width,), jnp.bfloat16)}},
    opt_state=tx.init(params),
  )


def make_empty(step: int = 0) -> TrainState:
  """The generator's state of an attack that learns no generator."""
  return TrainState(jnp.int32(step), {}, {}, optax.adam(1e-3).init({}))


def assert_same(actual: Any, expected: Any) -> None:
  """Equal in structure, dtype and every bit (NaN and -0.0 too)."""
  assert jax.tree.structure(actual) == jax.tree.structure(expected)
  for one, other in zip(
    jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True
  ):
    assert isinstance(one, jax.Array)
    assert (one.dtype, one.shape) == (other.dtype, other.shape)
    assert np.asarray(one).tobytes() == np.asarray(other).tobytes()


def save_steps(directory: pathlib.Path, losses: dict[int, float]) -> None:
  """Saves one step for every loss."""
  with Checkpoints(directory) as checkpoints:
    for step, loss in losses.items():
      checkpoints.save(
        step, make_state(step), make_empty(step), {"epoch": step}, loss
      )


def steps_on_disk(directory: pathlib.Path) -> list[int]:
  """The finished steps."""
  return sorted(int(p.name) for p in directory.iterdir() if p.name.isdigit())


def test_round_trip_is_exact(tmp_path):
  with Checkpoints(tmp_path) as checkpoints:
    checkpoints.save(
      7, make_state(7), make_empty(7), {"seed": 3, 11: ("ban", 2)}, 0.5
    )
  with Checkpoints(tmp_path) as checkpoints:
    found = checkpoints.restore(
      jax.eval_shape(lambda: make_state()), jax.eval_shape(make_empty)
    )
  assert found.step == 7
  assert found.meta == {"seed": 3, "11": ["ban", 2]}
  assert_same(found.state, make_state(7))
  assert_same(found.generator, make_empty(7))


def test_concrete_target_and_nothing_to_restore(tmp_path):
  with Checkpoints(tmp_path / "run" / "checkpoints") as checkpoints:
    assert checkpoints.restore(make_state(), make_empty()) is None
    assert checkpoints.latest_step() is None
    assert checkpoints.best_step() is None
    checkpoints.save(2, make_state(2), {}, {}, 1.0)
    found = checkpoints.restore(make_state(0), {})
  assert_same(found.state, make_state(2))
  assert found.generator == {}


def test_skips_what_the_target_leaves_out(tmp_path):
  save_steps(tmp_path, {3: 1.0})
  target = jax.eval_shape(lambda: make_state()).replace(opt_state=None)
  with Checkpoints(tmp_path, read_only=True) as checkpoints:
    assert checkpoints.restore(target).state.step == 3
    found = checkpoints.restore(target.replace(step=None))
    with pytest.raises(ValueError, match="opened read-only"):
      checkpoints.save(4, {}, {}, {}, 1.0)
  assert found.generator is None
  assert (found.state.step, found.state.opt_state) == (None, None)
  assert_same(found.state.params, make_state(3).params)
  assert_same(found.state.batch_stats, make_state(3).batch_stats)


def test_read_only_leaves_the_directory_alone(tmp_path):
  save_steps(tmp_path, {3: 1.0})
  unfinished = tmp_path / "4.orbax-checkpoint-tmp"
  unfinished.mkdir()
  before = sorted(tmp_path.rglob("*"))
  with Checkpoints(tmp_path, read_only=True) as checkpoints:
    assert checkpoints.restore(make_state()).step == 3
  assert sorted(tmp_path.rglob("*")) == before
  with Checkpoints(tmp_path / "missing", read_only=True) as checkpoints:
    assert checkpoints.restore(make_state()) is None
  assert not (tmp_path / "missing").exists()


def test_restored_arrays_lie_where_the_target_says(tmp_path):
  devices = len(jax.devices())  # four virtual ones
  mesh = jax.make_mesh(
    (devices,), ("data",), axis_types=(jax.sharding.AxisType.Auto,)
  )
  whole = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
  cut = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
  values = np.arange(3 * devices, dtype=np.float32)
  saved = {
    "whole": jax.device_put(values, whole),
    "cut": jax.device_put(values, cut),
  }
  free = jax.eval_shape(lambda: saved)
  turned = {
    "whole": jax.ShapeDtypeStruct(values.shape, values.dtype, sharding=cut),
    "cut": jax.ShapeDtypeStruct(values.shape, values.dtype, sharding=whole),
  }
  with Checkpoints(tmp_path) as checkpoints:
    checkpoints.save(1, saved, {}, {}, 1.0)
    for target, shardings in (
      (saved, {"whole": whole, "cut": cut}),
      (turned, {"whole": cut, "cut": whole}),
    ):
      found = checkpoints.restore(target).state
      assert {name: x.sharding for name, x in found.items()} == shardings
      assert_same(found, saved)
    found = checkpoints.restore(
      jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), free)
    ).state
  assert all(x.devices() == {jax.devices()[0]} for x in found.values())
  # Uncommitted, so that it may meet arrays of other devices.
  assert not any(x.committed for x in found.values())


def test_keeps_latest_and_best_also_over_a_restart(tmp_path):
  save_steps(tmp_path, {0: 3.0, 1: 1.0, 2: 2.0, 3: 4.0, 4: 5.0})
  assert steps_on_disk(tmp_path) == [1, 3, 4]
  with Checkpoints(tmp_path) as checkpoints:
    assert (checkpoints.latest_step(), checkpoints.best_step()) == (4, 1)
    checkpoints.save(5, make_state(5), {}, {}, float("nan"))
    checkpoints.save(6, make_state(6), {}, {}, 2.0)
    assert (checkpoints.latest_step(), checkpoints.best_step()) == (6, 1)
    found = checkpoints.restore(make_state(), step=checkpoints.best_step())
    assert_same(found.state, make_state(1))
    with pytest.raises(UserError, match=r"no checkpoint of step 2 .*1, 5, 6"):
      checkpoints.restore(make_state(), step=2)
  assert steps_on_disk(tmp_path) == [1, 5, 6]


def test_save_copies_before_the_next_step_overwrites(tmp_path):
  """A donated buffer is written over while the save is under way."""
  grow = jax.jit(lambda x: x + 1, donate_argnums=0)
  values = jnp.zeros((1000, 1000))
  with Checkpoints(tmp_path, keep_latest=100) as checkpoints:
    for step in range(6):
      checkpoints.save(step, {"x": values}, {}, {}, 1.0)
      for _ in range(10):
        values = grow(values)
    for step in range(6):
      found = checkpoints.restore({"x": values}, step=step).state["x"]
      assert np.unique(found).tolist() == [10.0 * step]


def test_saving_the_same_step_again_does_nothing(tmp_path):
  with Checkpoints(tmp_path) as checkpoints:
    checkpoints.save(1, make_state(1), {}, {}, 1.0)
    checkpoints.save(1, make_state(2), {}, {}, 1.0)
    assert_same(checkpoints.restore(make_state()).state, make_state(1))


@pytest.mark.parametrize(
  ("target", "named"),
  [
    (
      lambda: make_state(width=6),
      r"state/params/conv/kernel: float32\[3, 3, 1, 5\] there, "
      r"float32\[3, 3, 1, 6\] here",
    ),
    (
      lambda: make_state().replace(step=jnp.float32(0)),
      r"state/step: int32\[\] there, float32\[\] here",
    ),
    (
      lambda: make_state(tx=optax.sgd(0.1)),
      r"state/opt_state/1/0/trace/conv/kernel: .* there, absent here",
    ),
    (
      lambda: make_state().replace(batch_stats={"other": jnp.ones(2)}),
      r"state/batch_stats/other: absent there, float32\[2\] here",
    ),
  ],
)
def test_checkpoint_of_another_model(tmp_path, target, named):
  save_steps(tmp_path, {1: 1.0, 2: 1.0})
  with Checkpoints(tmp_path) as checkpoints:
    with pytest.raises(UserError, match=named) as caught:
      checkpoints.restore(target(), make_empty())
    with pytest.raises(UserError, match="generator/params/a: absent there"):
      checkpoints.restore(
        make_state(), make_empty().replace(params={"a": jnp.ones(2)})
      )
  assert "\n" not in str(caught.value)
  assert steps_on_disk(tmp_path) == [1, 2]


def files_of(directory: pathlib.Path) -> list[pathlib.Path]:
  """The files of a step that hold something, the largest first."""
  files = [p for p in directory.rglob("*") if p.is_file() and p.stat().st_size]
  return sorted(files, key=lambda p: (-p.stat().st_size, p))


def truncate(step: pathlib.Path) -> None:
  for path in files_of(step):
    os.truncate(path, path.stat().st_size // 2)


def flip(step: pathlib.Path) -> None:
  for path in files_of(step / "state"):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def empty(step: pathlib.Path) -> None:
  shutil.rmtree(step)
  step.mkdir()


def garble_record(step: pathlib.Path) -> None:
  path = step / "meta" / "metadata"
  path.write_text(path.read_text().replace('"epoch": 3', '"epoch": 2'))


@pytest.mark.parametrize("resumed", [3, 4])
@pytest.mark.parametrize("damage", [truncate, flip, empty, garble_record])
def test_damaged_newest_step_falls_back(tmp_path, damage, resumed):
  save_steps(tmp_path, {1: 1.0, 2: 2.0, 3: 0.5})
  damage(tmp_path / "3")
  told = []
  with Checkpoints(tmp_path) as checkpoints:
    found = checkpoints.restore(make_state(), make_empty(), report=told.append)
    assert (found.step, found.meta) == (2, {"epoch": 2})
    assert_same(found.state, make_state(2))
    assert len(told) == 1 and "checkpoint 3 in" in told[0]
    # Although the damaged step had the lowest loss, it does not stay.
    assert checkpoints.best_step() == 2
    checkpoints.save(resumed, make_state(30), {}, {"epoch": 3}, 3.0)
    assert_same(checkpoints.restore(make_state()).state, make_state(30))
  assert steps_on_disk(tmp_path) == [2, resumed]


def test_one_changed_bit_of_an_array_is_noticed(tmp_path):
  """Orbax alone restores the wrong numbers and says nothing."""
  noise = jax.random.normal(jax.random.key(0), (20_000,))
  with Checkpoints(tmp_path) as checkpoints:
    for step in (1, 2):
      checkpoints.save(step, {"x": noise + step}, {}, {}, 1.0)
  data = files_of(tmp_path / "2" / "state")[0]
  content = bytearray(data.read_bytes())
  content[len(content) // 2] ^= 1
  data.write_bytes(content)
  with Checkpoints(tmp_path) as checkpoints:
    found = checkpoints.restore({"x": noise})
  assert found.step == 1
  assert_same(found.state["x"], noise + 1)


def test_any_one_damaged_file_is_noticed_or_does_no_harm(tmp_path):
  save_steps(tmp_path / "run", {1: 1.0, 2: 1.0})
  fell_back = 0
  for path in files_of(tmp_path / "run" / "2"):
    copy = tmp_path / "copy"
    shutil.copytree(tmp_path / "run", copy)
    os.truncate(
      copy / path.relative_to(tmp_path / "run"), path.stat().st_size // 2
    )
    with Checkpoints(copy) as checkpoints:
      found = checkpoints.restore(make_state(), make_empty())
    assert found.meta == {"epoch": found.step}
    assert_same(found.state, make_state(found.step))
    assert_same(found.generator, make_empty(found.step))
    fell_back += found.step == 1
    shutil.rmtree(copy)
  assert fell_back >= 3


def test_every_step_damaged(tmp_path):
  save_steps(tmp_path, {1: 1.0, 2: 1.0})
  for step in steps_on_disk(tmp_path):
    truncate(tmp_path / str(step))
  with Checkpoints(tmp_path) as checkpoints:
    with pytest.raises(UserError, match="damaged: delete that directory"):
      checkpoints.restore(make_state(), make_empty())


SAVER = textwrap.dedent("""
    import itertools, sys
    import numpy as np
    from bdjax.checkpoints import Checkpoints
    target = {'x': np.zeros(200_000, np.float32)}
    with Checkpoints(sys.argv[1]) as checkpoints:
      found = checkpoints.restore(target)
      for step in itertools.count(found.step + 1 if found else 0):
        x = np.full(200_000, step, np.float32)
        checkpoints.save(step, {'x': x}, {'y': x[:3]}, {'step': step}, 1.0)
        print(step, flush=True)
""")


def test_sigkill_while_saving(tmp_path):
  """Killed at many moments, each time it goes on from a whole step."""
  target = {"x": jnp.zeros(200_000)}
  restored = []
  for kill in range(4):
    with subprocess.Popen(
      [sys.executable, "-c", SAVER, tmp_path], stdout=subprocess.PIPE, text=True
    ) as process:
      for _ in range(3):
        told = int(process.stdout.readline())
      time.sleep(kill * 0.007)  # spreads the moments; nothing depends on it
      process.send_signal(signal.SIGKILL)
    with Checkpoints(tmp_path, read_only=True) as checkpoints:
      found = checkpoints.restore(target, {"y": jnp.zeros(3)})
    # `told` was handed over; the one before had to be finished by then.
    assert found.step >= told - 1
    assert found.meta == {"step": found.step}
    assert np.unique(found.state["x"]).tolist() == [found.step]
    assert np.unique(found.generator["y"]).tolist() == [found.step]
    restored.append(found.step)
  assert restored == sorted(set(restored))
  Checkpoints(tmp_path).close()
  assert not list(tmp_path.glob("*tmp*"))


FULL = textwrap.dedent("""
    import resource, sys
    import numpy as np
    from bdjax.checkpoints import Checkpoints
    from bdjax.errors import UserError
    x = np.random.default_rng(0).random(100_000).astype(np.float32)
    try:
      with Checkpoints(sys.argv[1]) as checkpoints:
        checkpoints.save(1, {'x': x}, {}, {}, 1.0)
        checkpoints.wait()
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
        checkpoints.save(2, {'x': x}, {}, {}, 1.0)
        checkpoints.wait()
    except UserError as error:
      print(error)
""")


def test_failed_write_is_one_line_and_leaves_nothing(tmp_path):
  """A limit on file sizes stands for a full disk: the write itself fails."""
  process = subprocess.run(
    [sys.executable, "-c", FULL, tmp_path],
    capture_output=True,
    text=True,
    check=True,
  )
  assert re.fullmatch(
    r"no checkpoint can be written to \S+ \(file too large\): .*\n",
    process.stdout,
  )
  assert process.stderr == ""
  assert [path.name for path in tmp_path.iterdir()] == ["1"]
  with Checkpoints(tmp_path) as checkpoints:
    assert checkpoints.restore({"x": jnp.zeros(100_000)}).step == 1


@pytest.fixture
def small_disk(tmp_path):
  """A file system of four megabytes, where the system lets us make one."""
  if (
    not shutil.which("mount")
    or subprocess.run(
      ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", tmp_path],
      capture_output=True,
    ).returncode
  ):
    pytest.skip("needs the right to mount a tmpfs")
  yield tmp_path
  subprocess.run(["umount", "-l", tmp_path], check=True)


def test_full_disk_and_read_only_disk(small_disk):
  noise = jax.random.uniform(jax.random.key(0), (100_000,))
  with pytest.raises(UserError, match="no space left on device"):
    with Checkpoints(small_disk / "run", keep_latest=100) as checkpoints:
      for step in range(9):
        checkpoints.save(
          step, {"x": noise + step, "y": noise}, {"z": noise}, {}, 1.0
        )
  with Checkpoints(small_disk / "run", read_only=True) as checkpoints:
    found = checkpoints.restore({"x": noise, "y": None})
  assert steps_on_disk(small_disk / "run")[-1] == found.step
  assert_same(found.state["x"], noise + found.step)
  for step in steps_on_disk(small_disk / "run")[:-1]:
    shutil.rmtree(small_disk / "run" / str(step))
  subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
  with Checkpoints(small_disk / "run", read_only=True) as checkpoints:
    assert checkpoints.restore({"x": noise, "y": None}).step == found.step
  with pytest.raises(UserError, match="read-only file system"):
    Checkpoints(small_disk / "other")
  with pytest.raises(UserError, match="read-only file system"):
    with Checkpoints(small_disk / "run") as checkpoints:
      checkpoints.save(100, {"x": noise}, {}, {}, 1.0)


def test_directory_is_a_file(tmp_path):
  (tmp_path / "run").write_text("")
  with pytest.raises(UserError, match="no checkpoint can be written"):
    Checkpoints(tmp_path / "run" / "checkpoints")
