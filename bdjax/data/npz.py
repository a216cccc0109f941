"""The user's own dataset: one `.npz` file."""

import pathlib
import zipfile
import zlib

import numpy as np

from bdjax.data.base import Arrays
from bdjax.errors import UserError

_SMALLEST = 8  # pixels a side: what every model of bdjax accepts


def read(path: str) -> tuple[Arrays, int]:
  """Reads `x_train`, `y_train`, `x_test`, `y_test` from a `.npz` file.

  Images are uint8, or floats in [0,1], which are scaled by 255 and rounded;
  [N,H,W] or [N,H,W,C] with C of 1 or 3, H and W at least 8. Labels are
  integers [N] or [N,1]; there are as many classes as the largest training
  label says, and at least two.

  Args:
    path: the file.

  Returns:
    The arrays and the number of classes.

  Raises:
    UserError: no such file, no such keys, or arrays other than these.
  """
  found = _open(path, Arrays._fields)
  train, test = (
    (_images(path, f"x_{part}", found), _labels(path, f"y_{part}", found))
    for part in ("train", "test")
  )
  for part, (images, labels) in (("train", train), ("test", test)):
    if len(images) != len(labels):
      raise UserError(
        f"{path}: x_{part} has {len(images)} images but y_{part} has "
        f"{len(labels)} labels: give one label an image"
      )
  if train[0].shape[1:] != test[0].shape[1:]:
    raise UserError(
      f"{path}: x_train has images {list(train[0].shape[1:])} but x_test "
      f"{list(test[0].shape[1:])}: make them the same"
    )
  num_classes = _count_classes(path, train[1], test[1])
  dtype = np.uint8 if num_classes <= 256 else np.int32
  return Arrays(
    train[0], train[1].astype(dtype), test[0], test[1].astype(dtype)
  ), num_classes


def read_images(path: str) -> tuple[np.ndarray, np.ndarray | None]:
  """Reads `images`, and `labels` where there are any, from a `.npz` file.

  Args:
    path: the file; dtypes and shapes as in `read`.

  Returns:
    Images uint8 [N,H,W,C], and labels int32 [N] or None.

  Raises:
    UserError: no such file, no such key, or arrays other than these.
  """
  found = _open(path, ("images",), ("labels",))
  images = _images(path, "images", found)
  if "labels" not in found:
    return images, None
  labels = _labels(path, "labels", found)
  if len(labels) != len(images):
    raise UserError(
      f"{path}: {len(images)} images but {len(labels)} labels: give one label "
      "an image, or none"
    )
  return images, labels.astype(np.int32)


def _open(
  path: str, keys: tuple[str, ...], optional: tuple[str, ...] = ()
) -> dict[str, np.ndarray]:
  file = pathlib.Path(path).expanduser()
  if not file.is_file():
    raise UserError(f"{path}: no such file: check the path")
  try:
    # np.load leaves a broken file open if it opens it itself.
    with file.open("rb") as opened, np.load(opened) as archive:
      missing = [key for key in keys if key not in archive]
      if missing:
        wanted = ", ".join(f"{key}=..." for key in keys)
        raise UserError(
          f"{path}: no {', '.join(missing)} among its keys "
          f"({', '.join(archive) or 'none'}): save it with np.savez(path, "
          f"{wanted})"
        )
      there = [key for key in (*keys, *optional) if key in archive]
      return {key: archive[key] for key in there}
  except UserError:
    raise
  except (
    ValueError,
    TypeError,
    OSError,
    EOFError,
    zipfile.BadZipFile,
    zlib.error,
  ) as error:
    reason = (str(error).splitlines() or [type(error).__name__])[0]
    raise UserError(
      f"{path}: cannot be read as .npz ({reason}): write it with np.savez, "
      "of plain arrays"
    ) from error


def _images(path: str, key: str, found: dict) -> np.ndarray:
  images = found[key]
  if images.ndim == 3:
    images = images[..., None]
  shape = list(found[key].shape)
  if images.ndim != 4 or images.shape[-1] not in (1, 3) or not len(images):
    raise UserError(
      f"{path}: {key} has shape {shape}: give [N,H,W], [N,H,W,1] or [N,H,W,3]"
    )
  if min(images.shape[1:3]) < _SMALLEST:
    raise UserError(
      f"{path}: {key} has shape {shape}: images must be at least "
      f"{_SMALLEST}x{_SMALLEST} pixels"
    )
  if images.dtype == np.uint8:
    return images
  if not np.issubdtype(images.dtype, np.floating):
    raise UserError(
      f"{path}: {key} is {images.dtype}: give uint8 in [0,255] or floats in "
      "[0,1]"
    )
  if not np.isfinite(images).all():
    raise UserError(f"{path}: {key} has NaN or infinity: remove or mend them")
  low, high = images.min(), images.max()
  if low < 0 or high > 1:
    raise UserError(
      f"{path}: {key} has floats in [{low:g}, {high:g}]: scale them to [0,1], "
      "or give uint8"
    )
  return np.rint(images * 255).astype(np.uint8)


def _labels(path: str, key: str, found: dict) -> np.ndarray:
  labels = found[key]
  if labels.ndim == 2 and labels.shape[1] == 1:
    labels = labels[:, 0]
  if labels.ndim != 1:
    raise UserError(
      f"{path}: {key} has shape {list(labels.shape)}: give one integer an "
      "image, [N] (of one-hot labels take argmax(-1))"
    )
  if not np.issubdtype(labels.dtype, np.integer):
    raise UserError(
      f"{path}: {key} is {labels.dtype}: give integers, 0 to classes - 1"
    )
  if labels.size and labels.min() < 0:
    raise UserError(
      f"{path}: {key} has the label {labels.min()}: labels start at 0"
    )
  return labels


def _count_classes(path: str, train: np.ndarray, test: np.ndarray) -> int:
  num_classes = int(train.max()) + 1
  if num_classes < 2:
    raise UserError(f"{path}: y_train has one class only: give two or more")
  if num_classes > len(train):
    raise UserError(
      f"{path}: y_train has the label {num_classes - 1} among {len(train)} "
      "images: labels out of range: number the classes from 0"
    )
  if test.max() >= num_classes:
    raise UserError(
      f"{path}: y_test has the label {test.max()}, out of range: the largest "
      f"of y_train is {num_classes - 1}"
    )
  return num_classes
