"""The sources of a dataset's bytes, in the order in which they are tried."""

import logging
import os
import pathlib

from bdjax.data import builtin, cache, fetching, idx
from bdjax.data.arrays import check, with_int32_labels
from bdjax.data.specs import SPECS, Spec
from bdjax.errors import UserError

logger = logging.getLogger(__name__)

# Origins of a prepared directory or a cache that serve each value of `source`.
_ACCEPTED = {
  "auto": {"tfds", "tfds-prepared", "npm"},
  "tfds": {"tfds", "tfds-prepared"},
  "npm": {"npm"},
}


def find(
  name: str, source: str, data_dir: str | os.PathLike | None
) -> cache.Entry:
  """Return a known dataset, from the first source that has it.

  Args:
    name: a key of `SPECS`.
    source: 'auto', or one of the dataset's own.
    data_dir: a folder of TFDS or of idx files; None is TFDS's own.

  Raises:
    UserError: the source does not fit, or none has the dataset.
  """
  spec = SPECS[name]
  if source not in ("auto", *spec.sources):
    raise UserError(
      f"source must be one of {', '.join(('auto', *spec.sources))} for {name} "
      f"(got {source!r})"
    )
  if "builtin" in spec.sources:
    arrays = with_int32_labels(builtin.digits())
    remedy = "install bdjax again"
    sha256 = check(arrays, spec, name, remedy)
    return cache.make_entry(arrays, "builtin", sha256)
  root = tfds_root(data_dir)
  if "idx" in spec.sources and source in ("auto", "idx"):
    if source == "idx" and data_dir is None:
      raise UserError(
        "data_dir must be the directory of the four idx files for source idx"
      )
    if source == "idx" or (data_dir and idx.is_directory_of(root)):
      arrays = idx.read_directory(root)
      remedy = "fetch its files again, or choose another data_dir"
      sha256 = check(arrays, spec, str(root), remedy)
      return cache.make_entry(arrays, "idx", sha256)
  return _find_in_tfds(name, spec, source, root)


def tfds_root(data_dir: str | os.PathLike | None) -> pathlib.Path:
  """Return the folder that holds TFDS's datasets; it may not exist yet.

  Raises:
    UserError: no such path can be.
  """
  default = os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
  root = pathlib.Path(data_dir or default).expanduser()
  try:
    root.exists()
  except OSError as error:
    raise UserError(
      f"{root}: {error.strerror}: choose another data_dir"
    ) from error
  return root


def _find_in_tfds(
  name: str, spec: Spec, source: str, root: pathlib.Path
) -> cache.Entry:
  """Return a dataset from the cache, or else from the TFDS folder `root`."""
  path = cache.path_of(name, root)
  try:
    cached = cache.read(path, spec)
    if cached and cached.source in _ACCEPTED[source]:
      return cached
  except UserError as error:
    logger.warning("%s", error)
  from bdjax.data import prepared  # imports tensorflow_datasets: slow

  directory = prepared.find(root, name)
  if directory is None:
    directory = fetching.prepare(name, spec, source, root)
  origin = prepared.source_of(directory)
  if origin not in _ACCEPTED[source]:
    raise UserError(
      f"{directory} was prepared from {origin}, not from {source}: use source "
      "auto, or another data_dir"
    )
  arrays = prepared.read(directory)
  remedy = "delete it and run again, or choose another data_dir"
  sha256 = check(arrays, spec, str(directory), remedy)
  entry = cache.make_entry(arrays, origin, sha256)
  try:
    cache.write(path, entry)
  except OSError as error:  # the data are there all the same
    logger.warning("no cache, so that the next start is slower: %s", error)
  return entry
