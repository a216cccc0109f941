"""A dataset of the user's own: one `.npz` file."""

import pathlib
import zipfile
import zlib

import numpy as np

from bdjax.data.base import Arrays
from bdjax.errors import UserError
from bdjax.files import first_line

_MIN_PIXELS = 8  # pixels a side: what every model of bdjax accepts


def read(path: str) -> tuple[Arrays, int]:
  """Read `x_train`, `y_train`, `x_test`, `y_test` from a `.npz` file.

  Images are uint8, or floats in [0,1], which are scaled by 255 and rounded;
  [N,H,W] or [N,H,W,C] with C of 1 or 3, H and W at least 8. Labels are
  integers [N] or [N,1]; there are as many classes as the largest training
  label says, and at least two.

  Args:
    path: the file.

  Returns:
    The arrays, labels as int32, and the number of classes.

  Raises:
    UserError: no such file, no such keys, or arrays other than these.
  """
  arrays = _open(path, Arrays._fields)
  train, test = (
    (_images(path, f"x_{part}", arrays), _labels(path, f"y_{part}", arrays))
    for part in ("train", "test")
  )
  for part, (images, labels) in (("train", train), ("test", test)):
    if len(images) != len(labels):
      raise UserError(
        f"{path}: y_{part} must have one label an image (got {len(labels)} "
        f"labels for {len(images)} images)"
      )
  if train[0].shape[1:] != test[0].shape[1:]:
    raise UserError(
      f"{path}: x_train and x_test must have images of one shape (got "
      f"{list(train[0].shape[1:])} and {list(test[0].shape[1:])})"
    )
  num_classes = _count_classes(path, train[1], test[1])
  return Arrays(*train, *test), num_classes


def read_images(path: str) -> tuple[np.ndarray, np.ndarray | None]:
  """Read `images`, and `labels` where there are any, from a `.npz` file.

  Args:
    path: the file; dtypes and shapes as in `read`.

  Returns:
    Images uint8 [N,H,W,C], and labels int32 [N] or None.

  Raises:
    UserError: no such file, no such key, or arrays other than these.
  """
  arrays = _open(path, ("images",), ("labels",))
  images = _images(path, "images", arrays)
  if "labels" not in arrays:
    return images, None
  labels = _labels(path, "labels", arrays)
  if len(labels) != len(images):
    raise UserError(
      f"{path}: labels must be one an image, or left out (got {len(labels)} "
      f"labels for {len(images)} images)"
    )
  return images, labels


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
        example = ", ".join(f"{key}=..." for key in keys)
        raise UserError(
          f"{path}: no {', '.join(missing)} among its keys "
          f"({', '.join(archive) or 'none'}): save it with np.savez(path, "
          f"{example})"
        )
      present = [key for key in (*keys, *optional) if key in archive]
      return {key: archive[key] for key in present}
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
    raise UserError(
      f"{path}: cannot be read as .npz ({first_line(error)}): write it with "
      "np.savez, of plain arrays"
    ) from error


def _images(path: str, key: str, arrays: dict) -> np.ndarray:
  """Return images as uint8 [N,H,W,C]."""
  images = arrays[key]
  if images.ndim == 3:
    images = images[..., None]
  shape = list(arrays[key].shape)
  if images.ndim != 4 or images.shape[-1] not in (1, 3) or not len(images):
    raise UserError(
      f"{path}: {key} must have the shape [N,H,W], [N,H,W,1] or [N,H,W,3] "
      f"(got {shape})"
    )
  if min(images.shape[1:3]) < _MIN_PIXELS:
    raise UserError(
      f"{path}: images of {key} must be at least {_MIN_PIXELS}x{_MIN_PIXELS} "
      f"pixels (got {shape})"
    )
  if images.dtype == np.uint8:
    return images
  if not np.issubdtype(images.dtype, np.floating):
    raise UserError(
      f"{path}: {key} must be uint8 in [0,255] or floats in [0,1] (got "
      f"{images.dtype})"
    )
  if not np.isfinite(images).all():
    raise UserError(f"{path}: {key} must be finite (got NaN or infinity)")
  low, high = images.min(), images.max()
  if low < 0 or high > 1:
    raise UserError(
      f"{path}: floats of {key} must be in [0,1] (got [{low:g}, {high:g}]): "
      "scale them, or use uint8"
    )
  return np.rint(images * 255).astype(np.uint8)


def _labels(path: str, key: str, arrays: dict) -> np.ndarray:
  """Return labels as int32 [N]."""
  labels = arrays[key]
  if labels.ndim == 2 and labels.shape[1] == 1:
    labels = labels[:, 0]
  if labels.ndim != 1:
    raise UserError(
      f"{path}: {key} must have the shape [N], one integer an image (got "
      f"{list(labels.shape)}): use argmax(-1) of one-hot labels"
    )
  if not np.issubdtype(labels.dtype, np.integer):
    raise UserError(
      f"{path}: {key} must be integers, 0 to classes - 1 (got {labels.dtype})"
    )
  if labels.min(initial=0) < 0 or labels.max(initial=0) >= 2**31:
    raise UserError(
      f"{path}: {key} must be in 0 to classes - 1 (got {labels.min()} to "
      f"{labels.max()})"
    )
  return labels.astype(np.int32)


def _count_classes(path: str, train: np.ndarray, test: np.ndarray) -> int:
  num_classes = int(train.max()) + 1
  if num_classes < 2:
    raise UserError(f"{path}: y_train must have two classes or more (got one)")
  if num_classes > len(train):
    raise UserError(
      f"{path}: y_train has a label out of range: with {len(train)} images, "
      f"labels must be below {len(train)} (got {num_classes - 1})"
    )
  if test.max() >= num_classes:
    raise UserError(
      f"{path}: y_test has a label out of range: labels must be at most "
      f"{num_classes - 1}, the largest of y_train (got {test.max()})"
    )
  return num_classes
