import random

import h5py
import jax
import numpy as np
import pytest
from importing import DEEPID, assert_equal, draw, refused, write_keras

from bdjax.errors import UserError
from bdjax.models.importers import load, load_keras


@pytest.fixture
def keras(tmp_path):
  """A file of two layers that Keras might have written, and their arrays."""
  path = tmp_path / "weights.h5"
  layers = {
    "conv": {
      "kernel": np.arange(24, dtype=np.float32).reshape(2, 2, 2, 3),
      "bias": np.ones(3, np.float32),
    },
    "fc": {"kernel": np.full((3, 2), 0.5, np.float32)},
  }
  with h5py.File(path, "w") as file:
    write_keras(file, layers)
  return path, layers


@pytest.mark.parametrize("fixed", [True, False])
@pytest.mark.parametrize("dtype", ["<f4", ">f8", "<f2"])
def test_keras_weights(tmp_path, keras, dtype, fixed):
  path = tmp_path / "again.h5"
  with h5py.File(path, "w") as file:
    write_keras(file, keras[1], dtype, fixed)
  found = load_keras(path)
  assert_equal(found, keras[1])
  assert all(x.dtype == np.float32 for x in jax.tree.leaves(found))


def test_keras_whole_model(tmp_path, keras):
  path = tmp_path / "model.h5"
  with h5py.File(path, "w") as file:
    file.attrs["model_config"] = "{}"
    write_keras(file.create_group("model_weights"), keras[1])
    other = {"conv": {"kernel": np.zeros((1, 1))}}
    write_keras(file.create_group("optimizer_weights"), other)
  assert_equal(load_keras(path), keras[1])


def test_keras_scopes_and_lists_in_pieces(tmp_path):
  # A scope need not be the layer's name, and long lists are cut.
  path = tmp_path / "weights.h5"
  with h5py.File(path, "w") as file:
    file.attrs["layer_names0"] = [b"conv"]
    file["conv/outer/conv_2/kernel:0"] = np.ones(2, np.float32)
  assert list(load_keras(path)) == ["conv"]
  assert load_keras(path)["conv"]["kernel"].tolist() == [1, 1]


def test_keras_into_deepid(tmp_path):
  want = draw(DEEPID)
  path = tmp_path / "weights.h5"
  with h5py.File(path, "w") as file:
    write_keras(file, want.params)
  got = load(path, DEEPID)
  assert_equal(got, want)
  assert all(isinstance(x, jax.Array) for x in jax.tree.leaves(got))


# Ways to spoil a Keras file: (what is done to the open file, the words).
def _external(file):
  with h5py.File(file.filename + ".other", "w") as other:
    other["kernel"] = np.zeros((3, 2), np.float32)
  _replace(file, h5py.ExternalLink(file.filename + ".other", "/kernel"))


def _replace(file, item):
  del file["fc/fc/kernel:0"]
  file["fc/fc/kernel:0"] = item


def _create(**options):
  def spoil(file):
    del file["fc/fc/kernel:0"]
    file.create_dataset("fc/fc/kernel:0", **options)

  return spoil


def _virtual(file):
  layout = h5py.VirtualLayout((3, 2), np.float32)
  layout[:] = h5py.VirtualSource(file.filename + ".other", "x", (3, 2))
  del file["fc/fc/kernel:0"]
  file.create_virtual_dataset("fc/fc/kernel:0", layout)


def _outside(file):
  secret = file.filename + ".secret"
  with open(secret, "wb") as opened:
    opened.write(b"\0" * 24)
  _create(shape=(3, 2), dtype="f4", external=[(secret, 0, 24)])(file)


def _crowd(file):
  for i in range(10_001):
    file[f"fc/{i}"] = file["conv"]


def _cycle(file):
  file["flatten_1/self"] = file["flatten_1"]


def _many_links(file):
  # Each is small; all of them together are more than the file.
  file.create_dataset("big/kernel:0", data=np.zeros(10_000, np.float32))
  for i in range(9):
    file[f"big{i}"] = file["big"]


SPOILT = {
  "external link": (_external, "link to elsewhere"),
  "soft link": (lambda f: _replace(f, h5py.SoftLink("/conv")), "to elsewhere"),
  "soft root": (
    lambda f: f.__setitem__("model_weights", h5py.SoftLink("/")),
    "model_weights is a link",
  ),
  "virtual": (_virtual, "in another file"),
  "external storage": (_outside, "in another file"),
  "gzip": (
    _create(data=np.zeros((3, 2), "f4"), compression="gzip"),
    "h5repack",
  ),
  "chunks": (_create(data=np.zeros((3, 2), "f4"), chunks=(1, 1)), "in pieces"),
  "objects": (
    _create(data=["a", "b"], dtype=h5py.string_dtype()),
    "fc.kernel is object",
  ),
  "references": (
    _create(shape=(2,), dtype=h5py.ref_dtype),
    "fc.kernel is object",
  ),
  "compound": (_create(shape=(2,), dtype=[("a", "f4")]), "must be of floats"),
  "integers": (_create(data=np.zeros(2, np.int32)), "fc.kernel is int32"),
  "no values": (_create(dtype="f4"), "not an array"),
  "a type": (lambda f: _replace(f, np.dtype("f4")), "not an array"),
  "nan": (_create(data=np.float32([1, np.nan])), "NaN or infinity"),
  "overflow": (_create(data=np.array([1e300])), "NaN or infinity"),
  "huge": (_create(shape=(2**40,), dtype="f4"), "declares 4.1e.03 GiB"),
  "more than the file": (_create(shape=(2**20,), dtype="f4"), "4194... bytes"),
  "one array often": (
    _many_links,
    "declares 400... bytes",
  ),
  "cycle": (_cycle, "levels"),
  "crowd": (_crowd, "too many"),
  "long name": (lambda f: f.create_group("x" * 2000), "too long"),
  "two of a name": (
    lambda f: f.create_dataset("fc/other/kernel:0", data=np.zeros(1, "f4")),
    "two weights are named fc.kernel",
  ),
  "no layer": (
    lambda f: f.create_dataset("data", data=np.zeros(1, "f4")),
    "data belongs to no layer",
  ),
  "no list": (lambda f: f.attrs.pop("layer_names"), "no layer_names"),
}


@pytest.mark.parametrize("kind", list(SPOILT))
def test_spoilt_keras_files(keras, kind):
  path, _ = keras
  spoil, words = SPOILT[kind]
  with h5py.File(path, "a") as file:
    spoil(file)
  refused(words, load_keras, path)


def _damaged(data, count):
  """Copies of a file with a few bytes changed, or cut short."""
  for seed in range(count):
    rng, spoilt = random.Random(seed), bytearray(data)
    for _ in range(rng.choice((1, 2, 8))):
      at = rng.randrange(len(data))
      kind = rng.randrange(4)
      if kind == 0:
        spoilt[at : at + 8] = b"\xff" * min(8, len(spoilt[at : at + 8]))
      elif kind == 1 and seed % 5 == 0:
        del spoilt[at:]
      elif at < len(spoilt):
        spoilt[at] = rng.randrange(256)
    yield bytes(spoilt)


def test_damaged_keras_files_are_read_or_refused(keras):
  path, _ = keras
  refused = 0
  for data in _damaged(path.read_bytes(), 300):
    path.write_bytes(data)
    try:
      load_keras(path)
    except UserError as error:
      assert "\n" not in str(error)
      refused += 1
  assert refused > 30
