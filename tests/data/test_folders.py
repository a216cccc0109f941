import io
import os
import pathlib
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from bdjax.data import folders, image_files

ROOT = pathlib.Path(__file__).parents[2]
PIXELS = np.random.default_rng(0).integers(0, 256, (5, 4, 3), np.uint8)
GRAY = PIXELS[..., 0]


def _encoded(pixels, suffix="PNG", mode=None, **options):
  file = io.BytesIO()
  image = Image.fromarray(pixels)
  image.convert(mode or image.mode).save(file, suffix, **options)
  return file.getvalue()


def _png(width, height, idat, depth=8, colour=2, chunks=()):
  def chunk(kind, data):
    crc = struct.pack(">I", zlib.crc32(kind + data))
    return struct.pack(">I", len(data)) + kind + data + crc

  header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
  return b"\x89PNG\r\n\x1a\n" + b"".join(
    chunk(*each)
    for each in (
      (b"IHDR", header),
      *chunks,
      (b"IDAT", zlib.compress(idat)),
      (b"IEND", b""),
    )
  )


@pytest.fixture
def put(tmp_path):
  def put_(name, data):
    path = tmp_path / name
    path.write_bytes(data)
    return path

  return put_


def test_reads_a_folder_by_name(put, tmp_path):
  put("b.PNG", _encoded(PIXELS))
  put("c.jpg", _encoded(PIXELS, "JPEG"))
  put("a.jpeg", _encoded(PIXELS // 2, "PNG"))  # the content says what it is
  for name in ("notes.txt", ".hidden.png", "._b.png"):
    put(name, b"not an image")
  (tmp_path / "folder.png").mkdir()
  names, images, labels = folders.read(tmp_path, (5, 4, 3))
  assert names == ("a.jpeg", "b.PNG", "c.jpg")
  assert images.dtype == np.uint8 and images.shape == (3, 5, 4, 3)
  np.testing.assert_array_equal(images[0], PIXELS // 2)
  np.testing.assert_array_equal(images[1], PIXELS)
  assert labels is None


def test_reads_a_single_file(put):
  path = put("cl_0_label=43", _encoded(PIXELS))
  names, images, labels = folders.read(str(path))
  assert names == ("cl_0_label=43",)
  np.testing.assert_array_equal(images, PIXELS[None])
  assert labels.tolist() == [43]
  image = folders.read_image(path)
  np.testing.assert_array_equal(image, PIXELS)
  image[:] = 0  # the caller's own


def test_labels_stand_in_names(put, tmp_path, fails):
  for name in ("10_label_0.png", "9_label_1282.png", "label-7.png"):
    put(name, _encoded(PIXELS))
  files = folders.read(tmp_path)
  assert files.names == ("10_label_0.png", "9_label_1282.png", "label-7.png")
  assert files.labels.dtype == np.int32
  assert files.labels.tolist() == [0, 1282, 7]
  put("mislabel_5.png", _encoded(PIXELS))
  line = fails(folders.read, tmp_path)
  assert "mislabel_5.png has no label" in line


def test_no_labels_where_no_name_has_one(put, tmp_path):
  for name in ("label_7_a.png", "relabel_5.png", "3.png", "label_.png"):
    put(name, _encoded(PIXELS))
  assert folders.read(tmp_path).labels is None


def test_gray_and_palettes(put, fails):
  path = put("gray.png", _encoded(GRAY))
  np.testing.assert_array_equal(folders.read_image(path), GRAY[..., None])
  np.testing.assert_array_equal(
    folders.read_image(path, (5, 4, 3)), np.repeat(GRAY[..., None], 3, -1)
  )
  path = put("bits.png", _encoded(GRAY, mode="1"))
  assert set(folders.read_image(path, (5, 4, 1)).ravel()) == {0, 255}
  path = put("palette.png", _encoded(PIXELS // 128 * 255, mode="P"))
  np.testing.assert_array_equal(
    folders.read_image(path, (5, 4, 3)), PIXELS // 128 * 255
  )
  assert "channels [5, 4, 1] (got [5, 4, 3])" in fails(
    folders.read_image, path, (5, 4, 1)
  )


def test_transparency(put, fails):
  alpha = np.full((5, 4, 1), 255, np.uint8)
  path = put("opaque.png", _encoded(np.concatenate([PIXELS, alpha], -1)))
  np.testing.assert_array_equal(folders.read_image(path), PIXELS)
  alpha[2, 1] = 254
  path = put("hole.png", _encoded(np.concatenate([PIXELS, alpha], -1)))
  assert "transparent" in fails(folders.read_image, path)
  black = PIXELS.copy()
  black[3, 3] = 0
  path = put("key.png", _encoded(black, transparency=(0, 0, 0)))
  assert "transparent" in fails(folders.read_image, path)
  gray = np.stack([GRAY, alpha[..., 0] * 0 + 255], -1)
  path = put("la.png", _encoded(gray))
  np.testing.assert_array_equal(folders.read_image(path)[..., 0], GRAY)


def test_names_the_first_of_another_shape(put, tmp_path, fails):
  put("a.png", _encoded(PIXELS))
  put("b.png", _encoded(PIXELS))
  put("c.png", _encoded(PIXELS[:4]))
  put("d.png", _encoded(PIXELS[:3]))
  line = fails(folders.read, tmp_path)
  assert "c.png: it must have the height" in line
  assert "[5, 4, 3] (got [4, 4, 3])" in line
  line = fails(folders.read, tmp_path, (4, 5, 3))
  assert "a.png: it must have the height" in line
  assert "[4, 5, 3] (got [5, 4, 3])" in line
  assert "(got [5, 4, 4], which has 4)" in fails(
    folders.read, tmp_path, (5, 4, 4)
  )


def test_colours_that_are_not_8_bit_rgb(put, fails):
  deep = _encoded(GRAY.astype(np.uint16) * 257)
  for name, data, mode in (
    ("deep.png", deep, "I;16"),
    ("print.jpg", _encoded(PIXELS, "JPEG", "CMYK"), "CMYK"),
  ):
    assert f"its pixels are {mode}" in fails(
      folders.read_image, put(name, data)
    )


def test_broken_files(put, fails):
  for suffix in ("PNG", "JPEG"):
    whole = _encoded(np.tile(PIXELS, (9, 9, 1)), suffix)
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 255
    bad = [b"", b"\0" * 99, whole[:10], whole[: len(whole) // 2]]
    if suffix == "PNG":  # JPEG has no checksums
      bad.append(bytes(flipped))
    for data in bad:
      path = put("broken.png", data)
      line = fails(folders.read_image, path)
      assert "broken.png: cannot be read as PNG or JPEG" in line
      assert "0x" not in line


def test_other_formats_are_not_tried(put, fails):
  for suffix in ("GIF", "BMP", "TIFF", "PPM", "WEBP", "EPS"):
    path = put("picture.png", _encoded(PIXELS, suffix))
    assert "it is neither" in fails(folders.read_image, path)


def test_bombs(put, fails, monkeypatch):
  zeros = bytes(10**6)
  for side in (20_000, 10_000, 2**31 - 1):
    path = put("bomb.png", _png(side, side, zeros))
    assert f"({side**2} pixels)" in fails(folders.read_image, path)
  path = put("wide.png", _png(2**24 + 1, 1, zeros))
  assert "at most 16777216 pixels" in fails(folders.read_image, path)
  note = b"Comment\0\0" + zlib.compress(bytes(10**8), 9)
  path = put("note.png", _png(4, 5, zeros, chunks=((b"zTXt", note),)))
  assert "cannot be read" in fails(folders.read_image, path)
  monkeypatch.setattr(image_files, "MAX_FILE_BYTES", 2**20)
  path = put("large.png", _encoded(PIXELS) + zeros + zeros)
  assert "larger than 1 MB" in fails(folders.read_image, path)


def test_too_many_images(put, tmp_path, fails, monkeypatch):
  for name in "abc":
    put(f"{name}.png", _encoded(PIXELS))
  monkeypatch.setattr(folders, "_MAX_BYTES", 3 * 60)
  assert len(folders.read(tmp_path).images) == 3
  monkeypatch.setattr(folders, "_MAX_BYTES", 3 * 60 - 1)
  assert "3 images of [5, 4, 3]" in fails(folders.read, tmp_path)


def test_an_oddity_is_no_matter(put):
  whole = _encoded(PIXELS, "JPEG")
  odd = whole[:2] + b"\xff\xe2\x00\x0dMPF\x00garbage" + whole[2:]
  with pytest.warns(UserWarning, match="malformed MPO"):
    Image.open(io.BytesIO(odd)).close()
  image = folders.read_image(put("odd.jpg", odd))
  np.testing.assert_array_equal(
    image, folders.read_image(put("plain.jpg", whole))
  )


def test_no_such_path(fails, tmp_path):
  os.mkfifo(tmp_path / "pipe.png")
  for path in (tmp_path / "none", tmp_path / "pipe.png", "x" * 999):
    for function in (folders.read, folders.read_image):
      assert "no such file or folder" in fails(function, path)
  assert "no image in it" in fails(folders.read, tmp_path)
  assert "an image, not a folder" in fails(folders.read_image, tmp_path)


def test_real_faces():
  folder = pathlib.Path(
    os.environ.get("BDJAX_CSAW_DIR", ROOT.parent / "shared/csaw")
  )
  if not (folder / "golden.npz").is_file():
    pytest.skip("no ../shared/csaw and no $BDJAX_CSAW_DIR with golden.npz")
  with np.load(folder / "golden.npz") as file:
    golden = dict(zip(file["images"].tolist(), file["pixels"], strict=True))
  for kind in ("clean", "lipstick", "eyebrows", "sunglasses"):
    names, images, labels = folders.read(folder / "images" / kind, (55, 47, 3))
    assert len(names) == (8 if kind == "clean" else 5)
    for name, image in zip(names, images, strict=True):
      # Decoders of JPEG differ by a little.
      slack = 0 if name.endswith("png") else 4
      expected = golden[f"{kind}/{name}"].astype(int)
      assert np.abs(expected - image).max() <= slack
    if kind == "clean":
      assert labels.tolist() == [43, 328, 196, 1268, 748, 833, 356, 362]
    else:
      assert labels is None
