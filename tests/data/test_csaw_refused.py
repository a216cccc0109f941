"""Sets that are wrong, damaged or hostile."""

import functools
import os

import h5py
import numpy as np
import pytest
from csaw_sets import LABELS, PIXELS, with_pixel, write

from bdjax.data import csaw
from bdjax.errors import UserError


@pytest.fixture
def save(tmp_path):
  return functools.partial(write, tmp_path / "set.h5")


BAD = {
  "no data": ({"data": None}, "no 'data' among its keys ('label')"),
  "no label": ({"label": None}, "no 'label' among its keys ('data')"),
  "flat": ({"data": PIXELS.reshape(3, -1)}, "(got [3, 7755])"),
  "scalar": ({"data": 3.0}, "(got [])"),
  "channels last": ({"data": np.moveaxis(PIXELS, 1, -1)}, "[3, 55, 47, 3]"),
  "other size": ({"data": PIXELS[..., :46]}, "[3, 3, 55, 46]"),
  "no images": ({"data": PIXELS[:0], "label": LABELS[:0]}, "[0, 3, 55, 47]"),
  "nothing": ({"data": h5py.Empty("f4")}, "data is not an array"),
  "too few labels": ({"label": LABELS[:2]}, "(got [2], but data has 3"),
  "one-hot": ({"label": np.eye(3)}, "(got [3, 3], but data has 3"),
  "wide label": ({"label": np.array([0, 1283, 0])}, "label 1 is 1283"),
  "negative label": ({"label": np.array([0, 1, -1])}, "label 2 is -1"),
  "half a label": ({"label": np.array([0, 0.5, 1])}, "label 1 is 0.5"),
  "NaN label": ({"label": np.array([np.nan, 0, 1])}, "label 0 is nan"),
  "infinite label": ({"label": np.array([0, np.inf, 1])}, "label 1 is inf"),
  "NaN": ({"data": with_pixel(np.nan)}, "pixels in [nan, nan]"),
  "all NaN": ({"data": PIXELS * np.nan}, "pixels in [nan, nan]"),
  "infinity": ({"data": with_pixel(np.inf)}, "pixels in [0, inf]"),
  "minus infinity": ({"data": with_pixel(-np.inf)}, "pixels in [-inf, 255]"),
  "over 255": ({"data": with_pixel(256, "int32")}, "pixels in [0, 256]"),
  "under 0": ({"data": with_pixel(-3, "int16")}, "pixels in [-3, 255]"),
  "standardised": ({"data": PIXELS / 64 - 1}, "pixels in [-1, 2.98438]"),
  "between": ({"data": PIXELS / 170}, "largest pixel of data is 1.5, float64"),
  "0 and 1": ({"data": PIXELS % 2}, "largest pixel of data is 1, uint8"),
  "complex": ({"data": PIXELS + 1j}, "data is complex128"),
  "booleans": ({"data": PIXELS > 9}, "data is bool"),
  "text": ({"label": ["a", "b", "c"]}, "label is object"),
  "records": ({"label": np.zeros(3, [("a", "i4")])}, "label is [('a'"),
  "arrays": ({"label": np.zeros(3, "(2,)i4")}, "(got [3, 2], but data has 3"),
  "gzip": ({"compression": "gzip"}, "h5repack"),
  "lzf": ({"compression": "lzf"}, "h5repack"),
  "checksums": ({"fletcher32": True}, "h5repack"),
}


@pytest.mark.parametrize("changes, words", BAD.values(), ids=BAD)
def test_bad_sets(save, fails, changes, words):
  path = save(**changes)
  line = fails(csaw.read, path)
  assert words in line
  assert str(path) in line


def test_a_group_is_no_array(save, fails):
  path = save(data=None)
  with h5py.File(path, "r+") as file:
    file.create_group("data")
  assert "data is not an array" in fails(csaw.read, path)


def test_huge_chunks(save, fails):
  path = save(data=None)
  with h5py.File(path, "r+") as file:
    file.create_dataset(
      "data",
      PIXELS.shape,
      "u1",
      chunks=(50_000, 3, 55, 47),
      maxshape=(None, 3, 55, 47),
    )
  assert "huge pieces" in fails(csaw.read, path)


@pytest.mark.parametrize("many", [10**5, 10**12])
def test_more_images_than_the_file_holds(save, fails, many):
  path = save(data=None)
  with h5py.File(path, "r+") as file:
    file.create_dataset("data", (many, 3, 55, 47), "f8", chunks=(1, 3, 55, 47))
    del file["label"]
    file.create_dataset("label", (many,), "i8", chunks=(1000,))
  words = "but 0 are stored" if many == 10**5 else f"(got {many})"
  assert words in fails(csaw.read, path)


def test_an_array_longer_than_its_file(save, fails):
  path = save(label=np.zeros(90_000, "u1"))
  whole = path.read_bytes()
  for honest, boast in (
    (PIXELS.shape, (90_000, *PIXELS.shape[1:])),
    ((PIXELS.nbytes,), (697_950_000,)),
  ):
    honest, boast = (np.array(n, "<u8").tobytes() for n in (honest, boast))
    assert honest in whole
    whole = whole.replace(honest, boast)
    path.write_bytes(whole)
    assert "download it again" in fails(csaw.read, path)


def test_links_are_not_followed(save, fails, tmp_path):
  other = tmp_path / "other.h5"
  save().rename(other)
  for link in (h5py.SoftLink("/real"), h5py.ExternalLink(str(other), "data")):
    path = save(data=None)
    with h5py.File(path, "r+") as file:
      file["real"] = PIXELS
      file["data"] = link
    assert "data is a link" in fails(csaw.read, path)


def test_other_files_are_not_read(save, fails, tmp_path):
  raw = tmp_path / "raw"
  raw.write_bytes(PIXELS.tobytes())
  path = save(data=None)
  with h5py.File(path, "r+") as file:
    file.create_dataset(
      "data", PIXELS.shape, "u1", external=[(str(raw), 0, PIXELS.nbytes)]
    )
  assert "in another file" in fails(csaw.read, path)
  other = tmp_path / "other.h5"
  save().rename(other)
  path = save(data=None)
  layout = h5py.VirtualLayout(PIXELS.shape, "u1")
  layout[:] = h5py.VirtualSource(other, "data", PIXELS.shape)
  with h5py.File(path, "r+") as file:
    file.create_virtual_dataset("data", layout)
  assert "in another file" in fails(csaw.read, path)


def test_broken_files(save, fails):
  path = save()
  whole = path.read_bytes()
  for data in (b"", b"<html>", whole[:1000], whole[: len(whole) // 2]):
    path.write_bytes(data)
    line = fails(csaw.read, path)
    assert "cannot be read as HDF5" in line and str(path) in line


def test_damaged_headers(save, fails):
  path = save()
  whole = path.read_bytes()
  random = np.random.default_rng(0)
  refused = 0
  for _ in range(200):
    damaged = bytearray(whole)
    for at in random.integers(0, 2048, 8):
      damaged[at] = random.integers(256)
    path.write_bytes(damaged)
    try:
      assert len(csaw.read(path).images) == 3
    except UserError as error:
      assert "\n" not in str(error)
      refused += 1
  assert refused > 50


def test_no_file(fails, tmp_path):
  os.mkfifo(tmp_path / "pipe")
  for path in (tmp_path / "none.h5", tmp_path, tmp_path / "pipe", "x" * 999):
    line = fails(csaw.read, path)
    assert "no such file" in line and "drive.google.com" in line
