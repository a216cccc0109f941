"""The `.h5` sets of CSAW-HackML-2020: faces, clean and triggered.

Images of the YouTube Aligned Face set, 1283 people: `data` is [N,3,55,47] and
`label` [N]. The files are the user's to download; see `find`.
"""

import os
from collections.abc import Callable, Iterator

import h5py
import numpy as np

from bdjax import hdf5
from bdjax.data.base import Dataset
from bdjax.data.csaw_files import (
  FILES,
  NETWORKS,
  Network,
  download_hint,
  find,
)
from bdjax.errors import UserError

__all__ = [
  "FILES",
  "NETWORKS",
  "NUM_CLASSES",
  "SHAPE",
  "Network",
  "find",
  "pixel_max",
  "read",
]

NUM_CLASSES = 1283
SHAPE = (55, 47, 3)

# 100,000 images are 0.8 GB as uint8; the challenge's largest set has 12,830.
_MAX_IMAGES = 100_000
_ROWS = 256  # images read at a time: 16 MB of float64
_MAX_CHUNK_BYTES = 2**28


def pixel_max(
  accuracy_of: Callable[[float], float],
) -> tuple[float, dict[float, float]]:
  """Choose the range of pixels that a network was trained on: 0..1 or 0..255.

  Nothing in a file of weights says it, so it is the range on which the network
  classifies the clean set better. Of the challenge's networks `lab3` was
  trained on 0..255 and the others on 0..1. On eight clean faces, `lab3` gives
  none its label on the wrong range, but the others give two to five of them
  theirs, and triggers work as before: neither one accuracy nor the attack
  success rate tells, only the comparison does.

  Args:
    accuracy_of: given the largest pixel, 1.0 or 255.0, returns the accuracy in
      [0,1] on clean images of that range.

  Returns:
    The better largest pixel, and both accuracies by largest pixel, to be
    shown. On a tie, such as two accuracies of zero, it is 1.0, which nothing
    then supports.
  """
  accuracies = {high: float(accuracy_of(high)) for high in (1.0, 255.0)}
  return max(accuracies, key=accuracies.__getitem__), accuracies


def read(path: str | os.PathLike, limit: int | None = None) -> Dataset:
  """Read a set of the challenge, a few images at a time.

  Pixels may be of every integer and float type. The file's largest pixel says
  what they mean: up to 1, and not integers, they are in 0..1; from 2 on in
  0..255; anything else is refused. They become uint8, rounded to the nearest,
  so that memory stays near 8 KB an image, of any file.

  Only plain arrays in the file itself are read, as the challenge's are
  (float64, contiguous); see `bdjax.hdf5`.

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
    raise UserError(f"limit must be at least 1, or None for all (got {limit})")
  missing = download_hint(list(FILES))
  with hdf5.open_file(path, hint="download it again", missing=missing) as file:
    data, label = (
      hdf5.require_array(
        hdf5.child(file, key), key, max_chunk_bytes=_MAX_CHUNK_BYTES
      )
      for key in ("data", "label")
    )
    _check_shapes(path, data, label)
    labels = _labels(path, label[:])
    count = min(len(data), limit or len(data))
    high = _pixel_max(path, data)
    images = np.empty((count, *SHAPE), np.uint8)
    for start, block in _blocks(data, count):
      images[start : start + len(block)] = _uint8(path, block, high)
  return Dataset(images, labels[:count])


def _check_shapes(
  path: str | os.PathLike, data: h5py.Dataset, label: h5py.Dataset
) -> None:
  channels_first = (SHAPE[2], *SHAPE[:2])
  if data.ndim != 4 or data.shape[1:] != channels_first or not data.shape[0]:
    raise UserError(
      f"{path}: data must have the shape [N,3,55,47], N > 0 (got "
      f"{list(data.shape)})"
    )
  count = data.shape[0]  # len() raises above 2**63
  if count > _MAX_IMAGES:
    raise UserError(
      f"{path}: data must have at most {_MAX_IMAGES} images (got {count})"
    )
  if label.shape not in ((count,), (count, 1)):
    raise UserError(
      f"{path}: label must have the shape [N], one label an image (got "
      f"{list(label.shape)}, but data has {count} images)"
    )
  for key, array in (("data", data), ("label", label)):
    hdf5.require_stored(array, key)


def _labels(path: str | os.PathLike, labels: np.ndarray) -> np.ndarray:
  labels = labels.reshape(-1)
  with np.errstate(invalid="ignore"):  # a NaN fails the test below
    wrong = ~((labels >= 0) & (labels < NUM_CLASSES) & (labels % 1 == 0))
  if wrong.any():
    index = int(wrong.argmax())
    raise UserError(
      f"{path}: label {index} is {labels[index]}: labels must be whole, in "
      f"0..{NUM_CLASSES - 1}"
    )
  return labels.astype(np.int32)


def _blocks(data: h5py.Dataset, count: int) -> Iterator[tuple[int, np.ndarray]]:
  for start in range(0, count, _ROWS):
    yield start, data[start : min(start + _ROWS, count)]


def _pixel_max(path: str | os.PathLike, data: h5py.Dataset) -> float:
  """Return the largest pixel that this file's images may have: 1.0 or 255.0."""
  high = -np.inf
  for _, block in _blocks(data, len(data)):
    with np.errstate(invalid="ignore"):  # NaN is found later
      high = max(high, float(np.fmax.reduce(block, axis=None)))
    if high >= 2:
      return 255.0  # photographs of 0..255 end here, in the first block
  if high > _with_rounding(1.0) or data.dtype.kind != "f":
    raise UserError(
      f"{path}: the largest pixel of data is {high:g}, {data.dtype}: pixels "
      "must be floats in 0..1, or floats or integers in 0..255"
    )
  return 1.0


def _with_rounding(high: float) -> float:
  """Return `high` and what the rounding of float32 may add to it."""
  return high * (1 + 1e-6)


def _uint8(
  path: str | os.PathLike, block: np.ndarray, high: float
) -> np.ndarray:
  """Return the uint8 [n,55,47,3] that a block [n,3,55,47] stands for."""
  with np.errstate(invalid="ignore"):
    lowest, highest = float(block.min()), float(block.max())
  bound = _with_rounding(high)
  # The extremes of a block with a NaN are NaN, which no comparison passes.
  if not (bound - high >= -lowest and highest <= bound):
    raise UserError(
      f"{path}: data has pixels in [{lowest:g}, {highest:g}]: they must be "
      "finite and in 0..255, or none above 1 for 0..1"
    )
  if block.dtype.kind == "f":
    block = block.astype(np.result_type(block, np.float32), copy=False)
    if high != 255:
      block *= 255 / high
    np.rint(block, out=block)
  return block.astype(np.uint8).transpose(0, 2, 3, 1)
