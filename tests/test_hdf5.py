"""Tests of bdjax.hdf5: plain arrays are read, everything else is refused."""

import os
import random

import h5py
import numpy as np
import pytest

from bdjax import hdf5
from bdjax.errors import UserError


@pytest.fixture
def path(tmp_path):
  path = tmp_path / "a.h5"
  with h5py.File(path, "w") as file:
    file["x"] = np.arange(6, dtype=np.float32).reshape(2, 3)
    file["group/inner/y"] = np.arange(4)
  return path


def read_all(path):
  with hdf5.open_file(path) as file:
    arrays = {}
    for names, item in hdf5.walk(file):
      array = hdf5.require_array(item, ".".join(names))
      hdf5.require_stored(array, ".".join(names))
      arrays[names] = array[()]
    return arrays


def refused(path, words, function=read_all):
  with pytest.raises(UserError, match=words) as caught:
    function(path)
  line = str(caught.value)
  assert "\n" not in line and line.isprintable() and len(line) < 400
  return line


def test_reads_plain_arrays(path):
  arrays = read_all(path)
  assert list(arrays) == [("x",), ("group", "inner", "y")]
  assert arrays["x",].tolist() == [[0, 1, 2], [3, 4, 5]]
  with hdf5.open_file(path) as file:
    assert hdf5.names(file) == ["group", "x"]
    array = hdf5.child(file, "x")
    assert hdf5.nbytes(array) == 24
    assert isinstance(hdf5.child(file, "group"), h5py.Group)


def test_missing_files_and_keys(path, tmp_path):
  def read(path):
    with hdf5.open_file(path, missing="ask me") as file:
      hdf5.child(file, "other")

  assert str(path) in refused(
    path, r"no 'other' among its keys \('group', 'x'", read
  )
  os.mkfifo(tmp_path / "pipe")
  for other in (tmp_path / "none", tmp_path, tmp_path / "pipe", "x\n" * 999):
    refused(other, "no such file: ask me", read)


def test_broken_files(path):
  whole = path.read_bytes()
  for data in (b"", b"<html>", whole[: len(whole) // 2]):
    path.write_bytes(data)
    refused(path, r"a.h5: cannot be read as HDF5 \(.*\): fetch it again")


def test_user_errors_pass_and_others_are_the_files(path):
  with pytest.raises(UserError, match="^mine$"):
    with hdf5.open_file(path):
      raise UserError("mine")
  with pytest.raises(UserError, match=r"as a set \(two\): save it again$"):
    with hdf5.open_file(path, kind="a set", hint="save it again"):
      raise AssertionError("two\nlines")


def _create(**options):
  return lambda file: file.create_dataset("bad", **options)


def _external_link(file):
  file["bad"] = h5py.ExternalLink(file.filename, "x")


def _slash(file):
  file["bad"] = h5py.SoftLink("/x")


def _virtual(file):
  layout = h5py.VirtualLayout((2, 3), np.float32)
  layout[:] = h5py.VirtualSource(file.filename, "x", (2, 3))
  file.create_virtual_dataset("bad", layout)


def _external_storage(file):
  raw = file.filename + ".raw"
  with open(raw, "wb") as opened:
    opened.write(b"\0" * 24)
  _create(shape=(2, 3), dtype="f4", external=[(raw, 0, 24)])(file)


def _cycle(file):
  file["group/bad"] = file["group"]


def _crowd(file):
  for index in range(21):
    file[f"group/{index}"] = file["x"]


BAD = {
  "external link": (_external_link, "bad is a link to elsewhere"),
  "soft link": (_slash, "bad is a link to elsewhere"),
  "virtual": (_virtual, "in another file"),
  "external storage": (_external_storage, "in another file"),
  "gzip": (_create(data=np.ones(9), compression="gzip"), "h5repack"),
  "checksums": (_create(data=np.ones(9), fletcher32=True), "h5repack"),
  "chunks": (_create(data=np.ones(9), chunks=(1,)), "in pieces"),
  "strings": (_create(data=["a"], dtype=h5py.string_dtype()), "bad is object"),
  "references": (_create(shape=(2,), dtype=h5py.ref_dtype), "bad is object"),
  "records": (_create(shape=(2,), dtype=[("a", "f4")]), r"bad is \[\('a'"),
  "complex": (_create(data=np.ones(2) + 1j), "must be of integers or floats"),
  "no values": (_create(dtype="f4"), "bad is not an array"),
  "a type": (lambda f: f.__setitem__("bad", np.dtype("f4")), "not an array"),
  "unwritten": (_create(shape=(2**20,), dtype="f4"), "but 0 are stored"),
  "cycle": (_cycle, "8 levels"),
  "crowd": (_crowd, "too many"),
  "long name": (lambda f: f.create_group("x" * 2000), "too long"),
}


@pytest.mark.parametrize("spoil, words", BAD.values(), ids=BAD)
def test_everything_else_is_refused(path, monkeypatch, spoil, words):
  monkeypatch.setattr(hdf5, "MAX_OBJECTS", 20)
  with h5py.File(path, "a") as file:
    spoil(file)
  refused(path, words)


def test_paths_are_not_followed(path):
  def read(path):
    with hdf5.open_file(path) as file:
      hdf5.child(file, "group/inner")

  refused(path, "group/inner is a link to elsewhere", read)


def test_chunks_up_to_a_size(path):
  with h5py.File(path, "a") as file:
    file.create_dataset("chunked", data=np.ones(8), chunks=(4,))
  with hdf5.open_file(path) as file:
    array = hdf5.child(file, "chunked")
    assert hdf5.require_array(array, "a", max_chunk_bytes=32) is array
    with pytest.raises(UserError, match="a is compressed, in huge pieces"):
      hdf5.require_array(array, "a", max_chunk_bytes=31)
    with pytest.raises(UserError, match="a is int64: it must be of floats"):
      hdf5.require_array(
        hdf5.child(hdf5.child(hdf5.child(file, "group"), "inner"), "y"),
        "a",
        kinds="f",
      )


def test_an_array_longer_than_its_file(path):
  whole = path.read_bytes()
  for honest, boast in (((2, 3), (2**20, 3)), ((24,), (3 * 2**22,))):
    honest, boast = (np.array(n, "<u8").tobytes() for n in (honest, boast))
    assert honest in whole
    whole = whole.replace(honest, boast)
    path.write_bytes(whole)
    refused(path, "x should be 12582912 bytes but|cannot be read")


def test_damaged_bytes_are_read_or_refused_in_one_line(path):
  whole, count = path.read_bytes(), 0
  for seed in range(150):
    damaged, draw = bytearray(whole), random.Random(seed)
    for _ in range(8):
      damaged[draw.randrange(len(whole))] = draw.randrange(256)
    path.write_bytes(damaged)
    try:
      read_all(path)
    except UserError as error:
      assert "\n" not in str(error)
      count += 1
  assert count > 30
