"""Damaged checkpoints, killed processes, full disks.

Nothing is lost, nothing half-written is used.
"""

import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import textwrap
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from checkpointing import (
  assert_same,
  make_empty,
  make_state,
  save_steps,
  steps_on_disk,
)

from bdjax.checkpoints import Checkpoints
from bdjax.errors import UserError


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
def test_damaged_newest_step_falls_back(tmp_path, caplog, damage, resumed):
  save_steps(tmp_path, {1: 1.0, 2: 2.0, 3: 0.5})
  damage(tmp_path / "3")
  with Checkpoints(tmp_path) as checkpoints:
    restored = checkpoints.restore(make_state(), make_empty())
    assert (restored.step, restored.meta) == (2, {"epoch": 2})
    assert_same(restored.state, make_state(2))
    (line,) = caplog.messages
    assert line.startswith(f"checkpoint 3 in {tmp_path} is damaged")
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
    restored = checkpoints.restore({"x": noise})
  assert restored.step == 1
  assert_same(restored.state["x"], noise + 1)


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
      restored = checkpoints.restore(make_state(), make_empty())
    assert restored.meta == {"epoch": restored.step}
    assert_same(restored.state, make_state(restored.step))
    assert_same(restored.generator, make_empty(restored.step))
    fell_back += restored.step == 1
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
      restored = checkpoints.restore(target)
      for step in itertools.count(restored.step + 1 if restored else 0):
        x = np.full(200_000, step, np.float32)
        checkpoints.save(step, {'x': x}, {'y': x[:3]}, {'step': step}, 1.0)
        print(step, flush=True)
""")


def test_sigkill_while_saving(tmp_path):
  """Killed at many moments, each time it goes on from a whole step."""
  target = {"x": jnp.zeros(200_000)}
  steps = []
  for kill in range(4):
    with subprocess.Popen(
      [sys.executable, "-c", SAVER, tmp_path], stdout=subprocess.PIPE, text=True
    ) as process:
      for _ in range(3):
        handed_over = int(process.stdout.readline())
      time.sleep(kill * 0.007)  # spreads the moments; nothing depends on it
      process.send_signal(signal.SIGKILL)
    with Checkpoints(tmp_path, read_only=True) as checkpoints:
      restored = checkpoints.restore(target, {"y": jnp.zeros(3)})
    # The step before the last that was handed over was finished by then.
    assert restored.step >= handed_over - 1
    assert restored.meta == {"step": restored.step}
    assert np.unique(restored.state["x"]).tolist() == [restored.step]
    assert np.unique(restored.generator["y"]).tolist() == [restored.step]
    steps.append(restored.step)
  assert steps == sorted(set(steps))
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
    r"cannot write a checkpoint to \S+ \(File too large\): .*\n",
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
  with pytest.raises(UserError, match="No space left on device"):
    with Checkpoints(small_disk / "run", keep_latest=100) as checkpoints:
      for step in range(9):
        checkpoints.save(
          step, {"x": noise + step, "y": noise}, {"z": noise}, {}, 1.0
        )
  with Checkpoints(small_disk / "run", read_only=True) as checkpoints:
    restored = checkpoints.restore({"x": noise, "y": None})
  assert steps_on_disk(small_disk / "run")[-1] == restored.step
  assert_same(restored.state["x"], noise + restored.step)
  for step in steps_on_disk(small_disk / "run")[:-1]:
    shutil.rmtree(small_disk / "run" / str(step))
  subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
  with Checkpoints(small_disk / "run", read_only=True) as checkpoints:
    assert checkpoints.restore({"x": noise, "y": None}).step == restored.step
  with pytest.raises(UserError, match="Read-only file system"):
    Checkpoints(small_disk / "other")
  with pytest.raises(UserError, match="Read-only file system"):
    with Checkpoints(small_disk / "run") as checkpoints:
      checkpoints.save(100, {"x": noise}, {}, {}, 1.0)


def test_directory_is_a_file(tmp_path):
  (tmp_path / "run").write_text("")
  with pytest.raises(UserError, match="cannot write a checkpoint to"):
    Checkpoints(tmp_path / "run" / "checkpoints")
