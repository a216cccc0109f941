import pathlib

import numpy as np
import pytest

from bdjax.data import load

GOOD = {
  "x_train": np.arange(4 * 64, dtype=np.uint8).reshape(4, 8, 8, 1),
  "y_train": np.array([0, 1, 0, 1]),
  "x_test": np.zeros((2, 8, 8, 1), np.uint8),
  "y_test": np.array([0, 1]),
}


@pytest.fixture
def save(tmp_path):
  def save_(**changes):
    path = tmp_path / "mine.npz"
    arrays = {**GOOD, **changes}
    np.savez(path, **{k: v for k, v in arrays.items() if v is not None})
    return str(path)

  return save_


def test_reads_uint8(save):
  splits = load(save(), defender_fraction=0.25)
  assert splits.info.name == "mine"
  assert splits.info.source == "file"
  assert splits.info.class_names == ("0", "1")
  images = np.concatenate([splits.train.images, splits.defender.images])
  assert sorted(images[:, 0, 0, 0].tolist()) == [0, 64, 128, 192]
  assert splits.test.labels.dtype == np.int32


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_reads_floats_in_0_1(save, dtype):
  exact = GOOD["x_train"]
  splits = load(save(x_train=(exact / 255).astype(dtype)), defender_fraction=0)
  np.testing.assert_array_equal(splits.train.images, exact)


def test_reads_images_without_channels_and_labels_in_a_column(save):
  splits = load(
    save(
      x_train=GOOD["x_train"][..., 0],
      y_train=GOOD["y_train"][:, None],
      x_test=GOOD["x_test"][..., 0],
    ),
    defender_fraction=0,
  )
  np.testing.assert_array_equal(splits.train.images, GOOD["x_train"])
  np.testing.assert_array_equal(splits.train.labels, GOOD["y_train"])


def test_reads_more_than_256_classes(save):
  labels = np.arange(300)
  images = np.zeros((300, 8, 8, 3), np.uint8)
  splits = load(
    save(x_train=images, y_train=labels, x_test=images, y_test=labels),
    defender_fraction=0,
  )
  np.testing.assert_array_equal(splits.train.labels, labels)
  assert splits.info.num_classes == 300


NAN = np.full((4, 8, 8, 1), np.nan)
BAD = {
  "missing key": ({"y_test": None}, "no y_test"),
  "wrong key": ({"x_test": None, "test_x": GOOD["x_test"]}, "no x_test"),
  "flat images": ({"x_train": np.zeros((4, 64), np.uint8)}, "(got [4, 64])"),
  "two channels": ({"x_train": np.zeros((4, 8, 8, 2), np.uint8)}, "shape"),
  "channels first": ({"x_train": np.zeros((4, 3, 8, 8), np.uint8)}, "shape"),
  "too small": ({"x_train": np.zeros((4, 8, 7, 1), np.uint8)}, "8x8"),
  "no images": ({"x_test": GOOD["x_test"][:0]}, "(got [0, 8, 8, 1])"),
  "integers": ({"x_train": GOOD["x_train"].astype(np.int64)}, "int64"),
  "complex": ({"x_train": GOOD["x_train"].astype(complex)}, "complex128"),
  "NaN": ({"x_train": NAN}, "NaN"),
  "infinity": ({"x_train": NAN * 0 + np.inf}, "NaN or infinity"),
  "floats to 255": ({"x_train": GOOD["x_train"] / 1.0}, "[0, 255]"),
  "negative floats": ({"x_train": GOOD["x_train"] / -255}, "[-1, -0]"),
  "other test shape": ({"x_test": np.zeros((2, 9, 8, 1), np.uint8)}, "[9, 8"),
  "label count": (
    {"y_train": GOOD["y_train"][:3]},
    "(got 3 labels for 4 images)",
  ),
  "one-hot": ({"y_train": np.eye(4, 2, dtype=int)}, "argmax"),
  "float labels": ({"y_train": GOOD["y_train"] / 1.0}, "float64"),
  "negative label": ({"y_train": GOOD["y_train"] - 1}, "(got -1 to 0)"),
  "test label": ({"y_test": np.array([0, 2])}, "out of range"),
  "wild label": ({"y_train": np.array([0, 1, 0, 900])}, "out of range"),
  "one class": ({"y_train": np.zeros(4, int)}, "two classes or more (got one)"),
  "objects": ({"y_train": np.array([0, "a", None, 1], object)}, "np.savez"),
}


@pytest.mark.parametrize("changes, words", BAD.values(), ids=BAD)
def test_bad_arrays(save, fails, changes, words):
  path = save(**changes)
  line = fails(load, path)
  assert words in line
  assert path in line


def test_no_file(fails, tmp_path):
  assert "no such file" in fails(load, str(tmp_path / "none.npz"))
  (tmp_path / "folder.npz").mkdir()
  assert "no such file" in fails(load, str(tmp_path / "folder.npz"))


def test_broken_files(save, fails, tmp_path):
  path = save()
  whole = pathlib.Path(path).read_bytes()
  broken = tmp_path / "broken.npz"
  flipped = bytearray(whole)
  flipped[len(whole) // 3] ^= 255
  for data in (b"", b"garbage", whole[: len(whole) // 2], bytes(flipped)):
    broken.write_bytes(data)
    assert "broken.npz" in fails(load, str(broken))


def test_npy_by_the_name_of_npz(fails, tmp_path):
  path = tmp_path / "array.npz"
  with open(path, "wb") as file:
    np.save(file, GOOD["x_train"])
  assert "cannot be read" in fails(load, str(path))
