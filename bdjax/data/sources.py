"""Where a dataset's bytes come from, and in which order that is tried."""

import os
import pathlib
from collections.abc import Callable

from bdjax.data import builtin, cache, fetching, idx
from bdjax.data.arrays import check
from bdjax.data.specs import SPECS, Spec
from bdjax.errors import UserError

Report = Callable[[str], None]

# What a prepared directory or a cache may hold where the user names a source.
_FITS = {
  "auto": {"tfds", "tfds-prepared", "npm"},
  "tfds": {"tfds", "tfds-prepared"},
  "npm": {"npm"},
}


def find(
  name: str, source: str, data_dir: str | os.PathLike | None, report: Report
) -> cache.Entry:
  """Returns a known dataset, from the first source that has it.

  Args:
    name: a key of `SPECS`.
    source: 'auto', or one of the dataset's own.
    data_dir: a folder of TFDS or of idx files; None is TFDS's own.
    report: takes a line of progress.

  Raises:
    UserError: the source does not fit, or none has the dataset.
  """
  spec = SPECS[name]
  if source not in ("auto", *spec.sources):
    raise UserError(
      f"source {source!r} does not hold {name}: choose among "
      f"{', '.join(('auto', *spec.sources))}"
    )
  if "builtin" in spec.sources:
    arrays = builtin.digits()
    remedy = "install scikit-learn again"
    return cache.entry(arrays, "builtin", check(arrays, spec, name, remedy))
  root = tfds_root(data_dir)
  if "idx" in spec.sources and source in ("auto", "idx"):
    if source == "idx" and data_dir is None:
      raise UserError(
        "source idx needs data_dir: the directory of the four idx files"
      )
    if source == "idx" or (data_dir and idx.is_directory_of(root)):
      arrays = idx.read_directory(root)
      remedy = "fetch its files again, or name another data_dir"
      return cache.entry(arrays, "idx", check(arrays, spec, str(root), remedy))
  return _through_tfds(name, spec, source, root, report)


def tfds_root(data_dir: str | os.PathLike | None) -> pathlib.Path:
  """Returns the folder that holds TFDS's datasets; it may not exist yet.

  Raises:
    UserError: no such path can be.
  """
  default = os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
  root = pathlib.Path(data_dir or default).expanduser()
  try:
    root.exists()
  except OSError as error:
    reason = error.strerror
    raise UserError(f"{root}: {reason}: name another data_dir") from error
  return root


def _through_tfds(
  name: str, spec: Spec, source: str, root: pathlib.Path, report: Report
) -> cache.Entry:
  """Returns a dataset of the cache, or else of the TFDS folder `root`."""
  path = cache.path_of(name, root)
  try:
    cached = cache.read(path, spec)
    if cached and cached.source in _FITS[source]:
      return cached
  except UserError as error:
    report(str(error))
  from bdjax.data import prepared  # imports tensorflow_datasets: slow

  directory = prepared.find(root, name)
  if directory is None:
    directory = fetching.prepare(name, spec, source, root, report)
  holds = prepared.source_of(directory)
  if holds not in _FITS[source]:
    raise UserError(
      f"{directory} was prepared from {holds}, not from {source}: take source "
      "auto, or another data_dir"
    )
  arrays = prepared.read(directory, report)
  remedy = "delete it and run again, or name another data_dir"
  sha256 = check(arrays, spec, str(directory), remedy)
  new = cache.entry(arrays, holds, sha256)
  try:
    cache.write(path, new)
  except OSError as error:  # the data are there all the same
    report(f"no cache, the next start is slower: {error}")
  return new
