"""HDF5 files that are not trusted: only plain arrays in the file itself.

A link elsewhere, an array kept in another file, or one that needs a
decompressor, which HDF5 may load from a library, is refused. Whatever the HDF5
library raises becomes one line.
"""

import contextlib
import math
import os
import pathlib
from collections.abc import Iterator

import h5py

from bdjax.errors import UserError
from bdjax.files import first_line, printable

# Far beyond any data set's or network's: objects in a file, levels of groups,
# and the length of a name.
MAX_OBJECTS = 10_000
MAX_DEPTH = 8
MAX_NAME = 1_000

_KINDS = {"f": "floats", "iuf": "integers or floats"}


@contextlib.contextmanager
def open_file(
  path: str | os.PathLike,
  *,
  kind: str = "HDF5",
  hint: str = "fetch it again",
  missing: str = "check the path",
) -> Iterator[h5py.File]:
  """Open an HDF5 file for reading.

  Args:
    path: the file; `~` is the home directory.
    kind: what the file should be, for the error: "HDF5", "a Keras .h5 file".
    hint: what to do about a broken file, for the end of the error.
    missing: what to do where there is no such file.

  Yields:
    The open file. Any error in the block but a UserError counts as the
    library's on a broken file.

  Raises:
    UserError: no such file, not HDF5, or broken.
  """
  file = os.path.expanduser(path)
  if not os.path.isfile(file):  # no pipe, which h5py would wait for
    raise UserError(f"{printable(str(path), 200)}: no such file: {missing}")
  try:
    with h5py.File(file, "r") as opened:
      yield opened
  except UserError:
    raise
  except Exception as error:  # h5py raises nearly everything
    raise UserError(
      f"{path}: cannot be read as {kind} ({first_line(error)}): {hint}"
    ) from error


def names(group: h5py.Group) -> list[str]:
  """Return the names in a group, without any other of its contents.

  Raises:
    UserError: they are too many or too long.
  """
  collected = []

  def collect(name):
    collected.append(name)
    # Anything but None ends it: before all of a hostile list is in memory.
    return len(collected) > MAX_OBJECTS or len(name) > MAX_NAME or None

  stopped, _ = group.id.links.iterate(collect)
  if stopped:
    raise UserError(
      f"{_path(group)}: names too many or too long: at most {MAX_OBJECTS} "
      f"names of {MAX_NAME} characters are read"
    )
  return [name.decode() for name in collected]


def child(group: h5py.Group, name: str) -> h5py.Group | h5py.Dataset:
  """Return the member of a group with a name, if it is of the file itself.

  Raises:
    UserError: there is none, or it is a link to elsewhere.
  """
  # A name with a slash is a path, which HDF5 would follow through any link.
  link = None if "/" in name else group.get(name, getlink=True)
  if link is None and "/" not in name:
    known = ", ".join(repr(printable(n)) for n in names(group)[:8]) or "none"
    raise UserError(
      f"{_path(group)}: no {printable(name)!r} among its keys ({known}): "
      "check that it is the right file"
    )
  if not isinstance(link, h5py.HardLink):
    raise UserError(
      f"{_path(group)}: {printable(name)} is a link to elsewhere, which is "
      "not followed: use a file that holds its arrays itself"
    )
  return group[name]


def walk(
  group: h5py.Group,
) -> Iterator[tuple[tuple[str, ...], h5py.Dataset]]:
  """Yield everything below a group that is not a group; reads no array.

  Yields:
    `(names from the group down, the object)`. Check it with `require_array`.

  Raises:
    UserError: too many objects or levels, a cycle, or a link to elsewhere.
  """
  count, groups = 0, [((), group)]
  while groups:
    parents, parent = groups.pop(0)
    for name in names(parent):
      count += 1
      if count > MAX_OBJECTS or len(parents) > MAX_DEPTH:
        raise UserError(
          f"{_path(group)}: too many objects: at most {MAX_OBJECTS} on "
          f"{MAX_DEPTH} levels are read"
        )
      member = child(parent, name)
      if isinstance(member, h5py.Group):
        groups.append(((*parents, name), member))
      else:
        yield (*parents, name), member


def require_array(
  item: h5py.Dataset,
  name: str,
  *,
  kinds: str = "iuf",
  max_chunk_bytes: int = 0,
) -> h5py.Dataset:
  """Check that an object is an array of numbers that lies in the file as is.

  Args:
    item: from `child` or `walk`.
    name: what errors call it.
    kinds: numpy's dtype kinds that may be: "f" for floats, "iuf" for integers
      too; at most 8 bytes a number.
    max_chunk_bytes: the largest chunk of a chunked array; 0 for no chunks.

  Returns:
    The object.

  Raises:
    UserError: it is anything else.
  """
  name = printable(name)
  if not isinstance(item, h5py.Dataset) or item.shape is None:
    raise UserError(f"{_path(item)}: {name} is not an array: fetch it again")
  if item.dtype.kind not in kinds or item.dtype.itemsize > 8:
    raise UserError(
      f"{_path(item)}: {name} is {printable(str(item.dtype), 40)}: it must be "
      f"of {_KINDS.get(kinds, kinds)}"
    )
  created = item.id.get_create_plist()
  chunk_bytes = item.dtype.itemsize * math.prod(item.chunks or (0,))
  if (
    created.get_nfilters()
    or created.get_external_count()
    or item.is_virtual
    or chunk_bytes > max_chunk_bytes
  ):
    pieces = "huge pieces" if max_chunk_bytes else "pieces"
    raise UserError(
      f"{_path(item)}: {name} is compressed, in {pieces} or in another file: "
      "rewrite the file with h5repack -f NONE -l CONTI"
    )
  return item


def nbytes(array: h5py.Dataset) -> int:
  """Return the size in bytes that an array declares."""
  return math.prod(array.shape) * array.dtype.itemsize


def require_stored(array: h5py.Dataset, name: str) -> None:
  """Check that the file holds as many bytes of an array as it declares.

  Raises:
    UserError: it holds fewer.
  """
  stored = array.id.get_storage_size()
  held = pathlib.Path(array.file.filename).stat().st_size
  declared = nbytes(array)
  if min(stored, held) < declared:
    raise UserError(
      f"{_path(array)}: {printable(name)} should be {declared} bytes but "
      f"{min(stored, held)} are stored: fetch it again"
    )


def _path(item: h5py.Group | h5py.Dataset) -> str:
  return item.file.filename
