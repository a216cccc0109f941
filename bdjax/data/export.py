"""Export of a poisoned data set, for use in any framework."""

import contextlib
import csv
import os
import pathlib
import re
import shutil
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from bdjax import files
from bdjax.batch import CLEAN, COVER, POISONED
from bdjax.data.base import Dataset
from bdjax.errors import UserError

ARRAYS = "poisoned.npz"
ABOUT = "about.json"
ROLES = {CLEAN: "clean", POISONED: "poisoned", COVER: "cover"}


class ExportedSets(NamedTuple):
  """A poisoned training set, and test images with and without triggers.

  Attributes:
    train: the training set as it is trained on, poisoned.
    roles: int8 [N], of `bdjax.batch`.
    targets: int32 [N], the target label of poisoned and cover images; -1 of
      clean ones.
    test: the clean test set.
    triggered: triggered test images uint8 [M,H,W,C], with their target labels.
    test_index: int32 [M], the test image that each was made from.
    defender: clean images that were kept out of training; empty for none.
  """

  train: Dataset
  roles: np.ndarray
  targets: np.ndarray
  test: Dataset
  triggered: Dataset
  test_index: np.ndarray
  defender: Dataset


def export(
  directory: str | os.PathLike,
  sets: ExportedSets,
  class_names: Sequence[str],
  about: dict[str, Any],
  *,
  png: bool = True,
  overwrite: bool = False,
) -> None:
  """Write a poisoned data set into a new folder, whole or not at all.

  `poisoned.npz` has x_train, y_train, x_test and y_test, as `bdjax.data.load`
  reads them; roles and targets of the training images; x_test_triggered,
  y_test_triggered (the target labels) and test_index; and where there are any,
  x_defender and y_defender. `about.json` says how it was made. PNG files are
  `train/CLASS/00017.png` by the label that is trained on, `test/CLASS/...` by
  the true one, and `test_triggered/CLASS/...` by the target, each number that
  of the image in its set (of triggered images, in the test set), with an
  `index.csv` each.

  Args:
    directory: the folder; its parents are made where they are missing.
    sets: the images.
    class_names: one name a label.
    about: JSON-ready.
    png: whether PNG files are written.
    overwrite: whether an earlier export there is replaced.

  Raises:
    UserError: the folder exists, and is not an export to overwrite; or the
      disk is full or read-only.
  """
  directory = pathlib.Path(directory).expanduser()
  check_output(directory, overwrite)
  with files.disk_errors(directory, "another output"):
    directory.parent.mkdir(parents=True, exist_ok=True)
    with _replacing(directory) as folder:
      files.write_npz(folder / ARRAYS, **_arrays(sets))
      files.write_json(folder / ABOUT, about)
      if png:
        _write_images(folder, sets, _folder_names(class_names))


def check_output(directory: str | os.PathLike, overwrite: bool) -> None:
  """Check that a folder is new, or an export that may be replaced.

  Raises:
    UserError: it is neither.
  """
  path = pathlib.Path(directory).expanduser()
  if not os.path.lexists(path):
    return
  if not overwrite:
    raise UserError(
      f"output must be a new folder ({path} exists): choose another, or "
      "overwrite an earlier export"
    )
  if not ((path / ARRAYS).is_file() and (path / ABOUT).is_file()):
    raise UserError(
      f"output must be an earlier export to be overwritten ({path} is none)"
    )


@contextlib.contextmanager
def _replacing(directory: pathlib.Path):
  """Yield a temporary folder that replaces the directory at the end."""
  folder = directory.with_name(f".{directory.name}.{os.getpid()}")
  old = directory.with_name(f"{folder.name}.old")
  try:
    folder.mkdir()
    yield folder
    if os.path.lexists(directory):
      directory.rename(old)
    folder.rename(directory)
  finally:
    for path in (folder, old):
      shutil.rmtree(path, ignore_errors=True)


def _arrays(sets: ExportedSets) -> dict[str, np.ndarray]:
  arrays = {
    "x_train": sets.train.images,
    "y_train": sets.train.labels,
    "x_test": sets.test.images,
    "y_test": sets.test.labels,
    "roles": sets.roles,
    "targets": sets.targets,
    "x_test_triggered": sets.triggered.images,
    "y_test_triggered": sets.triggered.labels,
    "test_index": sets.test_index,
  }
  if len(sets.defender.labels):
    arrays["x_defender"], arrays["y_defender"] = sets.defender
  return arrays


def _folder_names(class_names: Sequence[str]) -> list[str]:
  """Return a folder's name for each class, in the order of the labels.

  Numbers are padded, since loaders of folders sort by name.
  """
  width = len(str(len(class_names) - 1))
  names = [
    name.zfill(width) if name.isdecimal() else re.sub(r"[^\w.-]+", "_", name)
    for name in class_names
  ]
  unique = {name.lower().strip(".") for name in names} - {""}
  if len(unique) < len(names):
    return [f"{label:0{width}}" for label in range(len(names))]
  return names


def _write_images(folder, sets, names) -> None:
  """Write the PNG files of the three sets, with an index each."""
  clean_test = np.zeros(len(sets.test.labels), np.int8)
  poisoned = np.full(len(sets.triggered.labels), POISONED, np.int8)
  parts = {
    "train": (sets.train, None, sets.roles, sets.targets),
    "test": (sets.test, None, clean_test, clean_test.astype(np.int32) - 1),
    "test_triggered": (
      sets.triggered,
      sets.test_index,
      poisoned,
      sets.triggered.labels,
    ),
  }
  for part, (dataset, numbers, roles, targets) in parts.items():
    rows = []
    if numbers is None:
      numbers = np.arange(len(dataset.labels))
    for label in np.unique(dataset.labels):
      (folder / part / names[label]).mkdir(parents=True)
    for i, (image, label) in enumerate(zip(*dataset, strict=True)):
      path = pathlib.Path(names[label], f"{numbers[i]:05}.png")
      _save_png(folder / part / path, image)
      target = "" if targets[i] < 0 else int(targets[i])
      rows.append((path.as_posix(), int(label), ROLES[int(roles[i])], target))
    _write_index(folder / part / "index.csv", rows)


def _save_png(path: pathlib.Path, image: np.ndarray) -> None:
  # Not `write_png`: the folder is whole or not at all, and to wait for the disk
  # at each of 60,000 images takes minutes.
  pixels = image[..., 0] if image.shape[-1] == 1 else image
  Image.fromarray(pixels).save(path, "PNG")


def _write_index(path: pathlib.Path, rows: list[tuple]) -> None:
  path.parent.mkdir(exist_ok=True)
  with open(path, "w", newline="", encoding="utf-8") as file:
    writer = csv.writer(file)
    writer.writerow(("image", "label", "role", "target"))
    writer.writerows(rows)
