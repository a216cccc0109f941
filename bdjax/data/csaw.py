"""The `.h5` sets of CSAW-HackML-2020: faces, clean and triggered.

Images of the YouTube Aligned Face set, 1283 people: `data` is [N,3,55,47] and
`label` [N]. The files are the user's to download; see `find`.
"""

import contextlib
import itertools
import os
from collections.abc import Callable, Iterator

import h5py
import numpy as np

from bdjax.data.base import Dataset
from bdjax.data.csaw_files import FILES, NETWORKS, Network, find, remedy
from bdjax.errors import UserError

__all__ = [
  "FILES",
  "NETWORKS",
  "NUM_CLASSES",
  "SHAPE",
  "Network",
  "find",
  "pixel_scale",
  "read",
]

NUM_CLASSES = 1283
SHAPE = (55, 47, 3)

# 100,000 images are 0.8 GB as uint8; the challenge's largest set has 12,830.
_MOST_IMAGES = 100_000
_ROWS = 256  # images read at a time: 16 MB of float64
_MOST_CHUNK_BYTES = 2**28


def pixel_scale(
  accuracy_of: Callable[[float], float],
) -> tuple[float, dict[float, float]]:
  """Says which pixels a network was trained on: 0..1 or 0..255.

  Nothing in a file of weights tells, so it is the scale on which the network
  classifies the clean set better. Of the challenge's networks `lab3` takes
  0..255 and the others 0..1. On eight clean faces, `lab3` gives none its label
  on the wrong scale, but the others give two to five of them theirs, and
  triggers work as before: neither one accuracy nor the attack success rate
  tells, only the comparison does.

  Args:
    accuracy_of: given the value that white has, 1.0 or 255.0, returns the
      accuracy in [0,1] on clean images of that scale.

  Returns:
    The better scale, and both accuracies by scale, to be shown. On a tie,
    such as two accuracies of zero, it is 1.0, which nothing then supports.
  """
  accuracies = {scale: float(accuracy_of(scale)) for scale in (1.0, 255.0)}
  return max(accuracies, key=accuracies.__getitem__), accuracies


def read(path: str | os.PathLike, limit: int | None = None) -> Dataset:
  """Reads a set of the challenge, a few images at a time.

  Pixels of every integer and float type are taken. The file's largest pixel
  says what they mean: up to 1, and not integers, they are in 0..1; from 2 on
  in 0..255; anything else is refused. They become uint8, rounded to the
  nearest, so that memory stays near 8 KB an image, of any file.

  Only plain arrays in the file itself are read, as the challenge's are
  (float64, contiguous): no compression, no filter, which could be a plug-in
  or a bomb, no link, no external or virtual storage.

  Args:
    path: the file.
    limit: how many images to read, from the first on, at least 1; None for
      all. What the pixels mean is still said by the whole file.

  Returns:
    Images uint8 [N,55,47,3] and labels int32 [N] in [0,1283).

  Raises:
    UserError: no such file, not HDF5, or anything else than these arrays.
  """
  if limit is not None and limit < 1:
    raise UserError(f"limit is {limit}: give at least 1, or none to read all")
  with _opened(path) as file:
    data, label = (_array(path, file, key) for key in ("data", "label"))
    _check_shapes(path, data, label)
    labels = _labels(path, label[:])
    count = min(len(data), limit or len(data))
    white = _white(path, data)
    images = np.empty((count, *SHAPE), np.uint8)
    for start, block in _blocks(data, count):
      images[start : start + len(block)] = _uint8(path, block, white)
  return Dataset(images, labels[:count])


@contextlib.contextmanager
def _opened(path: str | os.PathLike) -> Iterator[h5py.File]:
  file = os.path.expanduser(path)
  if not os.path.isfile(file):
    raise UserError(f"{path}: no such file: {remedy(list(FILES))}")
  try:
    with h5py.File(file, "r") as opened:
      yield opened
  except UserError:
    raise
  # What h5py makes of the HDF5 library's errors.
  except (OSError, RuntimeError, ValueError, TypeError, KeyError) as error:
    reason = (str(error).splitlines() or [type(error).__name__])[0]
    raise UserError(
      f"{path}: cannot be read as HDF5 ({reason}): download it again"
    ) from error


def _array(path: str | os.PathLike, file: h5py.File, key: str) -> h5py.Dataset:
  """Returns a dataset that is numbers, all of them in this file as they are."""
  link = file.get(key, getlink=True)
  if link is None:
    keys = ", ".join(map(repr, itertools.islice(file, 8))) or "none"
    raise UserError(
      f"{path}: no {key!r} among its keys ({keys}): give a set with data "
      "[N,3,55,47] and label [N]"
    )
  if not isinstance(link, h5py.HardLink):
    raise UserError(
      f"{path}: {key} is a link to somewhere else, which is not followed: "
      "give a file that holds the array"
    )
  array = file[key]
  if not isinstance(array, h5py.Dataset) or array.shape is None:
    raise UserError(f"{path}: {key} is not an array: give a set with arrays")
  if array.dtype.kind not in "iuf" or array.dtype.itemsize > 8:
    raise UserError(
      f"{path}: {key} is {str(array.dtype)[:40]}: give integers or floats"
    )
  chunk_bytes = array.dtype.itemsize * np.prod(array.chunks or 0, dtype=float)
  if (
    array.external
    or array.is_virtual
    or array.id.get_create_plist().get_nfilters()
    or chunk_bytes > _MOST_CHUNK_BYTES
  ):
    raise UserError(
      f"{path}: {key} is compressed, in huge chunks or in other files: "
      "write it as a plain array (h5repack -f NONE -l CONTI)"
    )
  return array


def _check_shapes(
  path: str | os.PathLike, data: h5py.Dataset, label: h5py.Dataset
) -> None:
  channels_first = (SHAPE[2], *SHAPE[:2])
  if data.ndim != 4 or data.shape[1:] != channels_first or not data.shape[0]:
    raise UserError(
      f"{path}: data has shape {list(data.shape)}: give [N,3,55,47], N > 0"
    )
  count = data.shape[0]  # len() raises above 2**63
  if count > _MOST_IMAGES:
    raise UserError(
      f"{path}: data has {count} images: give {_MOST_IMAGES} at most"
    )
  if label.shape not in ((count,), (count, 1)):
    raise UserError(
      f"{path}: label has shape {list(label.shape)} but data has {count} "
      "images: give one label an image, [N]"
    )
  for key, array in (("data", data), ("label", label)):
    stored = array.id.get_storage_size()
    size = array.size * array.dtype.itemsize
    if stored < size:
      raise UserError(
        f"{path}: {key} should be {size} bytes but {stored} are stored: "
        "download it again"
      )


def _labels(path: str | os.PathLike, labels: np.ndarray) -> np.ndarray:
  labels = labels.reshape(-1)
  with np.errstate(invalid="ignore"):  # a NaN fails the test below
    wrong = ~((labels >= 0) & (labels < NUM_CLASSES) & (labels % 1 == 0))
  if wrong.any():
    at = int(wrong.argmax())
    raise UserError(
      f"{path}: label {at} is {labels[at]}: labels are whole, in "
      f"0..{NUM_CLASSES - 1}"
    )
  return labels.astype(np.int32)


def _blocks(data: h5py.Dataset, count: int) -> Iterator[tuple[int, np.ndarray]]:
  for start in range(0, count, _ROWS):
    yield start, data[start : min(start + _ROWS, count)]


def _white(path: str | os.PathLike, data: h5py.Dataset) -> float:
  """Returns what white is in this file: 1.0 or 255.0."""
  high = -np.inf
  for _, block in _blocks(data, len(data)):
    with np.errstate(invalid="ignore"):  # NaN is found later
      high = max(high, float(np.fmax.reduce(block, axis=None)))
    if high >= 2:
      return 255.0  # photographs of 0..255 end here, in the first block
  if high > _above(1.0) or data.dtype.kind != "f":
    raise UserError(
      f"{path}: the largest pixel of data is {high:g}, {data.dtype}: give "
      "floats in 0..1, or floats or integers in 0..255"
    )
  return 1.0


def _above(white: float) -> float:
  """Returns `white` and what the rounding of float32 may add to it."""
  return white * (1 + 1e-6)


def _uint8(
  path: str | os.PathLike, block: np.ndarray, white: float
) -> np.ndarray:
  """Returns the uint8 [n,55,47,3] that a block [n,3,55,47] stands for."""
  with np.errstate(invalid="ignore"):
    low, high = float(block.min()), float(block.max())
  # The extremes of a block with a NaN are NaN, which no comparison passes.
  if not (_above(white) - white >= -low and high <= _above(white)):
    raise UserError(
      f"{path}: data has pixels in [{low:g}, {high:g}]: give finite ones in "
      "0..255, or none above 1 for 0..1"
    )
  if block.dtype.kind == "f":
    block = block.astype(np.result_type(block, np.float32), copy=False)
    if white != 255:
      block *= 255 / white
    np.rint(block, out=block)
  return block.astype(np.uint8).transpose(0, 2, 3, 1)
