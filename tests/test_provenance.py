import json
import pathlib
import platform
import re
import subprocess
import sys
import types

import jax
import jax.numpy as jnp
import pytest

from bdjax import provenance

INFO = types.SimpleNamespace(name="digits", source="builtin", sha256="ab" * 32)


def test_environment_is_json_and_names_versions_device_and_data():
  found = provenance.environment(INFO)
  assert json.loads(json.dumps(found)) == found
  assert found["versions"]["python"] == platform.python_version()
  assert found["versions"]["jax"] == jax.__version__
  assert found["device"]["backend"] == "cpu"
  assert found["device"]["count"] == jax.device_count()
  assert found["data"] == {
    "name": "digits",
    "source": "builtin",
    "sha256": "ab" * 32,
  }


def _git(root, *arguments):
  identity = ("-c", "user.name=a", "-c", "user.email=a@b.invalid")
  subprocess.run(("git", *identity, *arguments), cwd=root, check=True)


@pytest.fixture
def checkout(tmp_path, monkeypatch):
  """A repository of one file, in place of the sources."""
  _git(tmp_path, "init", "--quiet")
  (tmp_path / "a.txt").write_text("a")
  _git(tmp_path, "add", "a.txt")
  _git(tmp_path, "commit", "--quiet", "--message=first", "--no-verify")
  monkeypatch.setattr(provenance, "_ROOT", tmp_path)
  return tmp_path


def test_commit_of_a_checkout(checkout):
  commit = provenance.git_commit()
  assert re.fullmatch("[0-9a-f]{40}", commit)
  _git(checkout, "tag", "v1")  # a tag does not take the commit's place
  assert provenance.git_commit() == commit
  (checkout / "a.txt").write_text("b")
  assert provenance.git_commit() == f"{commit}-dirty"


def test_a_repository_around_the_sources_is_not_theirs(checkout, monkeypatch):
  (checkout / "inner").mkdir()
  monkeypatch.setattr(provenance, "_ROOT", checkout / "inner")
  assert provenance.git_commit() == "unknown"


def test_commit_without_git_is_unknown(checkout, monkeypatch):
  monkeypatch.setenv("PATH", "")
  assert provenance.git_commit() == "unknown"


def test_the_root_holds_the_package():
  assert (provenance._ROOT / "bdjax" / "provenance.py").samefile(
    provenance.__file__
  )


def test_processor_is_read_from_linux_or_from_the_platform(monkeypatch):
  cpuinfo = "processor\t: 0\nmodel name\t: Some CPU: 3 GHz\n"
  monkeypatch.setattr(pathlib.Path, "read_text", lambda *_, **__: cpuinfo)
  assert provenance.processor() == "Some CPU: 3 GHz"

  def missing(*_, **__):
    raise FileNotFoundError

  monkeypatch.setattr(pathlib.Path, "read_text", missing)
  monkeypatch.setattr(platform, "processor", lambda: "")
  monkeypatch.setattr(platform, "machine", lambda: "arm64")
  assert provenance.processor() == "arm64"


def test_peak_memory(monkeypatch):
  found = provenance.peak_memory_bytes()
  assert 2**25 < found["host"] < 2**45 and found["device"] is None
  device = types.SimpleNamespace(memory_stats=lambda: {"peak_bytes_in_use": 7})
  monkeypatch.setattr(jax, "local_devices", lambda: [device])
  assert provenance.peak_memory_bytes()["device"] == 7
  monkeypatch.setitem(sys.modules, "resource", None)  # as on Windows
  assert provenance.peak_memory_bytes() == {"host": None, "device": 7}


def test_flops_of_a_matrix_product():
  def apply(params, batch_stats, images):
    return images.reshape(len(images), -1) @ params, batch_stats

  model = types.SimpleNamespace(
    init=lambda key: (jnp.zeros((4 * 5 * 3, 10)), {}), apply=apply
  )
  # 60 products and as many sums for each of 10 outputs.
  assert provenance.flops_per_image(model, (4, 5, 3)) == 2 * 60 * 10


def test_share_of_peak_by_hand(monkeypatch):
  assert provenance.share_of_peak(1e9, 1e3) is None  # a CPU's is not known
  device = types.SimpleNamespace(device_kind="NVIDIA H200")
  monkeypatch.setattr(jax, "devices", lambda: [device])
  monkeypatch.setattr(jax, "device_count", lambda: 2)
  # 3 passes of 1e9 at 98,900 images a second, of two devices of 989e12.
  share = provenance.share_of_peak(1e9, 98_900)
  assert share == pytest.approx(0.15)
  assert provenance.share_of_peak(None, 98_900) is None
