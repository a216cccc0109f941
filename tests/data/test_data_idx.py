import gzip

import pytest

from bdjax.data import load
from bdjax.data.idx import FILES, parse


@pytest.fixture
def folder(tmp_path, small):
  arrays, members, _ = small("fashion_mnist")
  directory = tmp_path / "idx"
  directory.mkdir()
  for name, data in members.items():
    (directory / name).write_bytes(data)
  return directory, arrays


@pytest.mark.parametrize("source", ["auto", "idx"])
def test_reads_a_directory(folder, source, equal):
  splits = load(
    "fashion_mnist", source=source, data_dir=folder[0], defender_fraction=0
  )
  equal(splits, folder[1])
  assert splits.info.source == "idx"
  assert splits.info.class_names[9] == "Ankle boot"


def test_reads_gzipped_files(folder, equal):
  directory, arrays = folder
  for name in FILES:
    data = (directory / name).read_bytes()
    (directory / f"{name}.gz").write_bytes(gzip.compress(data))
    (directory / name).unlink()
  equal(
    load("fashion_mnist", data_dir=str(directory), defender_fraction=0), arrays
  )


def test_missing_file(folder, fails):
  (folder[0] / FILES[3]).unlink()
  line = fails(load, "fashion_mnist", data_dir=folder[0])
  assert f"no {FILES[3]}" in line


def test_needs_a_directory(fails):
  assert "data_dir" in fails(load, "fashion_mnist", source="idx")


def test_no_network_names_the_directory(fails):
  line = fails(load, "fashion_mnist")
  assert "does not answer" in line
  assert "idx files" in line


def test_broken_files(folder, fails):
  path = folder[0] / FILES[0]
  whole = path.read_bytes()
  for data in (b"", whole[:3], whole[:10], whole[:-1], b"\x00" + whole):
    path.write_bytes(data)
    assert FILES[0] in fails(load, "fashion_mnist", data_dir=folder[0])
  path.unlink()
  squeezed = gzip.compress(whole)
  for data in (whole, squeezed[:-20], squeezed[:50] + b"!" + squeezed[51:]):
    path.with_name(path.name + ".gz").write_bytes(data)
    assert FILES[0] in fails(load, "fashion_mnist", data_dir=folder[0])


def test_other_bytes_than_the_pinned_ones(folder, fails):
  path = folder[0] / FILES[0]
  data = bytearray(path.read_bytes())
  data[-1] ^= 1
  path.write_bytes(data)
  line = fails(load, "fashion_mnist", data_dir=folder[0])
  assert "corrupted" in line
  assert "x_train" in line


def test_labels_in_the_place_of_images(folder, fails):
  labels = (folder[0] / FILES[1]).read_bytes()
  (folder[0] / FILES[0]).write_bytes(labels)
  assert "dimensions" in fails(load, "fashion_mnist", data_dir=folder[0])


def test_parse_by_hand():
  data = bytes([0, 0, 8, 2, 0, 0, 0, 2, 0, 0, 0, 3, 1, 2, 3, 4, 5, 6])
  assert parse(data).tolist() == [[1, 2, 3], [4, 5, 6]]
  for other in (data[:-1], data + b"0", b"\x00\x00\x0d" + data[3:]):
    with pytest.raises(ValueError):
      parse(other)
