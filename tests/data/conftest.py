"""Small datasets, a fake npm, and folders that no other test sees."""

import base64
import hashlib
import io
import json
import logging
import stat
import tarfile

import numpy as np
import pytest
from PIL import Image

from bdjax.data import fetching
from bdjax.data.arrays import digests
from bdjax.data.base import Arrays
from bdjax.data.idx import FILES
from bdjax.data.specs import SPECS, Package
from bdjax.errors import UserError

# Twelve training images, so that more than one class has several.
_TRAIN, _TEST = 12, 5

_NPM = """#!/bin/sh
echo "$@" >> "{folder}/calls"
{body}
"""


def _idx(array):
  shape = b"".join(size.to_bytes(4, "big") for size in array.shape)
  data = array.astype(np.uint8).tobytes()
  return bytes([0, 0, 8, array.ndim]) + shape + data


def _tarball(members):
  file = io.BytesIO()
  with tarfile.open(fileobj=file, mode="w:gz") as archive:
    for name, data in members.items():
      header = tarfile.TarInfo(f"package/{name}")
      header.size = len(data)
      archive.addfile(header, io.BytesIO(data))
  return file.getvalue()


def _sprite(images):
  file = io.BytesIO()
  Image.fromarray(images.reshape(len(images), 1024, 3)).save(file, "PNG")
  return file.getvalue()


def _mnist_members(arrays):
  flat = (array.squeeze(-1) if array.ndim == 4 else array for array in arrays)
  return dict(zip(FILES, map(_idx, flat), strict=True))


def _cifar10_members(arrays):
  batches = np.array_split(arrays.x_train, 5)
  return {
    **{f"data_batch_{i + 1}.png": _sprite(b) for i, b in enumerate(batches)},
    "test_batch.png": _sprite(arrays.x_test),
    "train_lables.json": json.dumps(arrays.y_train.tolist()).encode(),
    "test_lables.json": json.dumps(arrays.y_test.tolist()).encode(),
  }


_MEMBERS = {
  "mnist": _mnist_members,
  "fashion_mnist": _mnist_members,
  "cifar10": _cifar10_members,
}


@pytest.fixture(autouse=True)
def isolated(tmp_path, monkeypatch):
  """No folder of the user's, no npm, no network."""
  monkeypatch.setenv("HOME", str(tmp_path / "home"))
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
  monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "tfds"))
  monkeypatch.setenv("PATH", str(tmp_path / "bin"))
  monkeypatch.setattr(fetching, "answers", lambda host, port: False)


@pytest.fixture
def small(monkeypatch):
  """Makes a known dataset small: returns its arrays, members and tarball."""

  def shrink(name):
    random = np.random.default_rng(len(name))
    shape = SPECS[name].shape
    arrays = Arrays(
      random.integers(0, 256, (_TRAIN, *shape), np.uint8),
      np.arange(_TRAIN, dtype=np.int32) % 10,
      random.integers(0, 256, (_TEST, *shape), np.uint8),
      np.arange(_TEST, dtype=np.int32),
    )
    members = _MEMBERS[name](arrays)
    tarball = _tarball(members)
    digest = base64.b64encode(hashlib.sha512(tarball).digest()).decode()
    package = SPECS[name].package and Package(
      SPECS[name].package.name, "9.9.9", f"sha512-{digest}", 1
    )
    monkeypatch.setitem(
      SPECS,
      name,
      SPECS[name]._replace(
        sha256=digests(arrays), package=package, megabytes=0
      ),
    )
    return arrays, members, tarball

  return shrink


@pytest.fixture
def npm(tmp_path, monkeypatch):
  """Puts a fake npm on PATH; returns how often it has been called."""
  folder = tmp_path / "bin"

  def install(tarball=b"", body="/bin/cp {folder}/tarball packed.tgz"):
    folder.mkdir(exist_ok=True)
    (folder / "tarball").write_bytes(tarball)
    script = folder / "npm"
    script.write_text(
      _NPM.format(folder=folder, body=body.format(folder=folder))
    )
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    calls = folder / "calls"
    return lambda: calls.read_text().splitlines() if calls.exists() else []

  return install


@pytest.fixture
def log(caplog):
  """Returns the lines that bdjax logs, which grow; clear() empties it."""
  caplog.set_level(logging.INFO, logger="bdjax")

  class Log:
    clear = staticmethod(caplog.clear)

    def __iter__(self):
      return iter(caplog.messages)

    def __len__(self):
      return len(caplog.messages)

  return Log()


@pytest.fixture
def equal():
  """Compares splits without a defender with a dataset's arrays."""

  def compare(splits, arrays):
    np.testing.assert_array_equal(splits.train.images, arrays.x_train)
    np.testing.assert_array_equal(splits.train.labels, arrays.y_train)
    np.testing.assert_array_equal(splits.test.images, arrays.x_test)
    np.testing.assert_array_equal(splits.test.labels, arrays.y_test)
    assert splits.train.labels.dtype == splits.test.labels.dtype == np.int32

  return compare


@pytest.fixture
def fails():
  """Calls a function that must raise a UserError of one line; returns it."""

  def call(function, *args, **kwargs):
    with pytest.raises(UserError) as caught:
      function(*args, **kwargs)
    line = str(caught.value)
    assert line and "\n" not in line
    return line

  return call
