import functools
import os
import pathlib
import subprocess
import sys
import tracemalloc

import make_csaw
import numpy as np
import pytest
from csaw_sets import LABELS, PIXELS, with_pixel, write

from bdjax.data import csaw

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture
def save(tmp_path):
  return functools.partial(write, tmp_path / "set.h5")


@pytest.mark.parametrize(
  "dtype", ["uint8", "int16", ">i4", "int64", "float16", "float32", ">f8"]
)
def test_reads_pixels_in_0_255(save, dtype):
  images, labels = csaw.read(save(PIXELS.astype(dtype)))
  assert images.dtype == np.uint8
  np.testing.assert_array_equal(images, np.moveaxis(PIXELS, 1, -1))
  assert labels.dtype == np.int32
  np.testing.assert_array_equal(labels, LABELS)


@pytest.mark.parametrize("dtype", ["float16", "float32", ">f8"])
def test_reads_pixels_in_0_1(save, dtype):
  images, _ = csaw.read(save((PIXELS / 255).astype(dtype)))
  np.testing.assert_array_equal(images, np.moveaxis(PIXELS, 1, -1))


def test_rounds_to_the_nearest(save):
  data = np.full((3, 3, 55, 47), 200.0)
  data[0, 2, 54, 1] = 254.6
  data[1, 0, 3, 46] = 0.4
  images = csaw.read(save(data)).images
  assert images[0, 54, 1, 2] == 255
  assert images[1, 3, 46, 0] == 0
  images = csaw.read(save(data / 255)).images
  assert images[0, 54, 1, 2] == 255
  assert images[1, 3, 46, 0] == 0
  assert (images == 200).sum() == images.size - 2


def test_the_whole_file_says_what_pixels_mean(save):
  count = 300  # more than are read at a time
  data = np.ones((count, 3, 55, 47), np.float32)
  data[-1] = 2
  path = save(data, np.zeros(count, int))
  images = csaw.read(path).images
  assert (images[:-1] == 1).all() and (images[-1] == 2).all()
  assert (csaw.read(path, 1).images == 1).all()
  data[-1] = 0.2
  path = save(data, np.zeros(count, int))
  images = csaw.read(path).images
  assert (images[:-1] == 255).all() and (images[-1] == 51).all()


def test_rounding_errors_about_white_are_no_matter(save):
  data = np.ones((3, 3, 55, 47))
  data[0, 0, 0, :3] = 1 + 5e-7, -5e-7, 0.5
  images = csaw.read(save(data)).images
  assert images[0, 0, :3, 0].tolist() == [255, 0, 128]
  images = csaw.read(save(data * 255)).images
  assert images[0, 0, :3, 0].tolist() == [255, 0, 128]


@pytest.mark.parametrize(
  "labels", [LABELS[:, None], LABELS / 1, LABELS.astype(">u2")]
)
def test_reads_labels_of_other_types(save, labels):
  found = csaw.read(save(label=labels)).labels
  np.testing.assert_array_equal(found, LABELS)


def test_limit(save, fails):
  path = save()
  images, labels = csaw.read(path, 2)
  np.testing.assert_array_equal(images, csaw.read(path).images[:2])
  assert labels.tolist() == [7, 0]
  assert len(csaw.read(path, 99).images) == 3
  assert "limit must be at least 1" in fails(csaw.read, path, 0)
  images = csaw.read(save(with_pixel(np.nan)), 2).images  # the third is broken
  np.testing.assert_array_equal(images, np.moveaxis(PIXELS[:2], 1, -1))


def test_reads_a_chunked_file(save):
  images = csaw.read(save(chunks=(2, 1, 55, 47))).images
  np.testing.assert_array_equal(images, np.moveaxis(PIXELS, 1, -1))


def test_memory_stays_near_the_uint8_images(tmp_path):
  path = tmp_path / "set.h5"
  make_csaw.write(path, 2000)
  assert path.stat().st_size > 124_000_000
  tracemalloc.start()
  try:
    dataset = csaw.read(path)
    _, peak = tracemalloc.get_traced_memory()
  finally:
    tracemalloc.stop()
  assert dataset.images.nbytes == 15_510_000
  assert peak < dataset.images.nbytes + 40_000_000


def test_pixel_max_is_that_of_the_better_accuracy():
  assert csaw.pixel_max({1.0: 0.0, 255.0: 0.98}.get) == (
    255.0,
    {1.0: 0.0, 255.0: 0.98},
  )
  assert csaw.pixel_max({1.0: 0.97, 255.0: 0.6}.get)[0] == 1.0
  assert csaw.pixel_max(lambda scale: np.float32(0))[0] == 1.0


def test_finds_what_is_there(tmp_path):
  names = {
    "clean_validation": "clean_validation_data.h5",
    "sunglasses": "data/sunglasses_poisoned_data.h5",
    "multi/eyebrows": "Multi-trigger Multi-target/eyebrows_poisoned_data.h5",
    "lab3/clean_validation": "lab3/data/cl/valid.h5",
    "lab3/bd_test": "bd_test.h5",
  }
  others = ["readme.txt", "data/clean_test.h5"]
  others += ["data/clean_validation_data.h5"]  # the nearer one counts
  for name in [*names.values(), *others]:
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
  (tmp_path / "clean_test_data.h5").mkdir()
  found = csaw.find(str(tmp_path), ("sunglasses",))
  assert found == {key: tmp_path / name for key, name in names.items()}
  assert list(found) == list(names)


def test_says_what_is_missing(fails, tmp_path):
  line = fails(csaw.find, tmp_path)
  assert "none of these" in line and str(tmp_path) in line
  assert all(names[0] in line for names in csaw.FILES.values())
  (tmp_path / "clean_validation_data.h5").touch()
  line = fails(csaw.find, tmp_path, csaw.NETWORKS["sunglasses"].needed)
  assert "not there: clean_test_data.h5, sunglasses_poisoned_data.h5" in line
  assert "13o2ybRJ1BkGUvfmQEeZqDo1kskyFywab" in line
  line = fails(csaw.find, tmp_path, csaw.NETWORKS["lab3"].needed)
  assert "cl/valid.h5, cl/test.h5, bd/bd_test.h5, bd/bd_valid.h5" in line
  assert "13o2ybRJ" not in line
  assert "1Rs68uH8Xqa4j6UxG53wzD0uyI8347dSq" in line
  assert "none of these" in fails(csaw.find, tmp_path / "nowhere")


def test_networks_name_their_sets_and_targets():
  for network in csaw.NETWORKS.values():
    assert set(network.needed) <= set(csaw.FILES)
    assert network.triggered.keys() == network.targets.keys()
    assert network.triggered_validation.keys() <= network.targets.keys()
  assert set(make_csaw.COUNTS) == set(csaw.FILES)


def test_generated_sets(tmp_path):
  network = csaw.NETWORKS["multi_trigger_multi_target"]
  command = [sys.executable, "-m", "tests.make_csaw", f"--output={tmp_path}"]
  command += ["--images=5", "--network=multi_trigger_multi_target"]
  subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
  found = csaw.find(tmp_path, network.needed)
  assert set(found) == set(network.needed)
  # As valid.h5 of the challenge: 2048 bytes of headers, float64, 8 a label.
  assert found["clean_test"].stat().st_size == 2048 + 5 * (8 * 7755 + 8)
  assert csaw.read(found["clean_test"]).labels.tolist() == [
    0,
    256,
    513,
    769,
    1026,
  ]
  for trigger, key in network.triggered.items():
    images, labels = csaw.read(found[key])
    assert images.min() == 0 and images.max() == 255
    assert labels.tolist() == [network.targets[trigger]] * 5


def test_real_faces_come_back(save):
  folder = os.environ.get("BDJAX_CSAW_DIR", ROOT.parent / "shared/csaw")
  golden = pathlib.Path(folder, "golden.npz")
  if not golden.is_file():
    pytest.skip("no ../shared/csaw and no $BDJAX_CSAW_DIR with golden.npz")
  with np.load(golden) as file:
    pixels = file["pixels"]
  first = np.moveaxis(pixels, -1, 1)
  for data in (first.astype(float), first.astype(np.float32) / 255):
    images = csaw.read(save(data, np.arange(len(data)))).images
    np.testing.assert_array_equal(images, pixels)
