"""Tests of bdjax.files: whole files, one line an error, one holder a lock."""

import errno
import logging
import os
import pathlib
import signal
import subprocess
import sys
import threading

import numpy as np
import pytest

from bdjax import files
from bdjax.errors import UserError


def names(directory):
  return sorted(path.name for path in directory.iterdir())


def test_atomic_replaces_when_the_block_ends(tmp_path):
  path = tmp_path / "file.txt"
  path.write_text("old")
  with files.atomic(path) as temporary:
    assert temporary == tmp_path / f".file.txt.{os.getpid()}"
    temporary.write_text("new")
    assert path.read_text() == "old"
  assert path.read_text() == "new"
  assert names(tmp_path) == ["file.txt"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_atomic_leaves_the_old_file_when_the_block_raises(tmp_path, error):
  path = tmp_path / "file.txt"
  path.write_text("old")
  with pytest.raises(error):
    with files.atomic(path) as temporary:
      temporary.write_text("half")
      raise error
  assert path.read_text() == "old"
  assert names(tmp_path) == ["file.txt"]


def test_text_and_json_come_back(tmp_path):
  files.write_text(str(tmp_path / "a"), "ä\n")
  assert (tmp_path / "a").read_bytes() == "ä\n".encode()
  path = tmp_path / "b.json"
  files.write_json(path, {"x": [1, None]})
  assert path.read_text() == '{\n  "x": [\n    1,\n    null\n  ]\n}\n'
  assert files.read_json(path) == {"x": [1, None]}
  assert files.read_json(tmp_path / "none.json") is None
  with pytest.raises(ValueError, match="not JSON compliant"):
    files.write_json(path, float("nan"))
  assert files.read_json(path) == {"x": [1, None]}


@pytest.mark.parametrize(
  "data", [b"", b'{"a": 1', b"\xff\xfe{}", b"[" * 10**5, b"{\n\n}}"]
)
def test_damaged_json_is_one_line(tmp_path, data):
  path = tmp_path / "a.json"
  path.write_bytes(data)
  with pytest.raises(
    UserError, match="a.json is damaged .*: ask me$"
  ) as caught:
    files.read_json(path, "ask me")
  assert "\n" not in str(caught.value)
  with pytest.raises(UserError, match="cannot be read"):
    files.read_json(tmp_path)


def test_npz_comes_back(tmp_path):
  files.write_npz(tmp_path / "a.npz", path=np.arange(3), mask=np.ones((2, 2)))
  with np.load(tmp_path / "a.npz") as archive:
    assert archive["path"].tolist() == [0, 1, 2]
    assert archive["mask"].shape == (2, 2)
  assert names(tmp_path) == ["a.npz"]


@pytest.mark.parametrize(
  "error, reason",
  [
    (OSError(errno.ENOSPC, "x"), "No space left on device"),
    (PermissionError(errno.EACCES, "x"), "Permission denied"),
    (ValueError("tensorstore: File too large [1]"), "File too large"),
    (OSError("no errno, Read-only file system"), "Read-only file system"),
    (ConnectionResetError(errno.ECONNRESET, "reset"), None),
    (ValueError("a defect"), None),
  ],
)
def test_disk_errors(error, reason):
  assert files.disk_reason(error) == reason
  with pytest.raises(type(error) if reason is None else UserError) as caught:
    with files.disk_errors("runs/a", "another runs_dir", writing="a log"):
      raise error
  if reason is None:
    assert caught.value is error
  else:
    assert str(caught.value) == (
      f"cannot write a log to runs/a ({reason}): free the disk, or choose "
      "another runs_dir"
    )


def test_disk_errors_passes_user_errors(tmp_path):
  with pytest.raises(UserError, match="^No space left on device$"):
    with files.disk_errors(tmp_path):
      raise UserError("No space left on device")
  (tmp_path / "file").touch()
  with pytest.raises(UserError, match=r"^cannot write to \S+ \(Not a direct"):
    with files.disk_errors(tmp_path):
      files.write_text(tmp_path / "file" / "a", "")


def test_first_line_and_printable():
  assert files.first_line(ValueError("one\ntwo")) == "one"
  assert files.first_line(ValueError("\n\n one")) == "one"
  assert files.first_line(KeyError()) == "KeyError"
  assert files.first_line(ValueError("a\x1b[31mb\x00")) == "a?[31mb?"
  assert files.first_line(ValueError("x" * 300)) == "x" * 197 + "..."
  assert files.printable("x" * 80) == "x" * 80
  assert files.printable("x" * 81) == "x" * 77 + "..."


def test_lock_is_exclusive_and_removed(tmp_path):
  path = tmp_path / "lock"
  with files.lock(path) as held:
    assert held
    with pytest.raises(files.Locked, match="another process holds .*lock"):
      with files.lock(path, wait=False):
        pytest.fail("two hold it")
    assert path.exists()
  assert not path.exists()
  with files.lock(path, wait=False) as held:
    assert held


def test_lock_waits_and_logs(tmp_path, caplog):
  caplog.set_level(logging.INFO, logger="bdjax.files")
  path = tmp_path / "lock"
  acquired = threading.Event()

  def wait():
    with files.lock(path):
      acquired.set()

  thread = threading.Thread(target=wait)
  with files.lock(path):
    thread.start()
    while not caplog.records:
      thread.join(0.01)
    assert not acquired.is_set()
  thread.join(10)
  assert acquired.is_set()
  message = f"waiting for another process (it holds {path})"
  assert [record.getMessage() for record in caplog.records] == [message]
  assert not path.exists()


_HOLDER = """
import sys, time
from bdjax.files import lock
with lock(sys.argv[1]):
  print('held', flush=True)
  time.sleep(60)
"""


def test_lock_is_released_when_its_holder_is_killed(tmp_path):
  path = tmp_path / "lock"
  with subprocess.Popen(
    [sys.executable, "-c", _HOLDER, path], stdout=subprocess.PIPE, text=True
  ) as process:
    assert process.stdout.readline() == "held\n"
    with pytest.raises(files.Locked):
      with files.lock(path, wait=False):
        pass
    process.send_signal(signal.SIGKILL)
  assert path.exists()
  with files.lock(path, wait=False) as held:
    assert held


def test_lock_that_its_last_holder_removed_is_made_anew(tmp_path, monkeypatch):
  path = tmp_path / "lock"
  opened, removed = os.open, []

  def open_then_remove(*args):
    descriptor = opened(*args)
    if not removed:
      removed.append(path)
      pathlib.Path(path).unlink()
    return descriptor

  monkeypatch.setattr(files.os, "open", open_then_remove)
  with files.lock(path):
    assert path.exists()
  assert removed == [path]


def test_file_system_without_locks(tmp_path, monkeypatch):
  def lock_descriptor(descriptor, **options):
    raise OSError(errno.ENOLCK, "No locks available")

  monkeypatch.setattr(files.filelock, "lock_descriptor", lock_descriptor)
  with files.lock(tmp_path / "lock") as held:
    assert not held
