"""Decoded arrays on disk: one file a dataset, whole or absent."""

import contextlib
import hashlib
import json
import os
import pathlib
import time
import zipfile
import zlib
from typing import NamedTuple

import numpy as np

from bdjax.data.arrays import channel_statistics, check, with_int32_labels
from bdjax.data.base import Arrays
from bdjax.data.specs import Spec
from bdjax.errors import UserError
from bdjax.files import atomic, first_line

_STALE_SECONDS = 3600


class Entry(NamedTuple):
  """A dataset, with the facts of its bytes that `Info` has."""

  arrays: Arrays
  source: str
  sha256: dict[str, str]
  mean: tuple[float, ...]
  std: tuple[float, ...]


def make_entry(arrays: Arrays, source: str, sha256: dict[str, str]) -> Entry:
  """Make an entry; compute the statistics of its training images."""
  return Entry(arrays, source, sha256, *channel_statistics(arrays.x_train))


def path_of(name: str, root: pathlib.Path) -> pathlib.Path:
  """Return the cache file of dataset `name` of the TFDS folder `root`.

  Under XDG_CACHE_HOME where that is an absolute path, as its standard says,
  else under ~/.cache. Another root is another file.
  """
  xdg = os.environ.get("XDG_CACHE_HOME", "")
  home = pathlib.Path(xdg if os.path.isabs(xdg) else "~/.cache")
  tag = hashlib.sha256(os.fsencode(root.absolute())).hexdigest()[:8]
  return home.expanduser() / "bdjax" / "data" / f"{name}-{tag}.npz"


def write(path: pathlib.Path, entry: Entry) -> None:
  """Write an entry, uncompressed, which is the quickest to read.

  Raises:
    OSError: read-only or full disk; nothing is left behind.
  """
  path.parent.mkdir(parents=True, exist_ok=True)
  for stale in path.parent.glob(f".{path.name}.*"):  # of a run that was killed
    with contextlib.suppress(FileNotFoundError):
      if time.time() - stale.stat().st_mtime > _STALE_SECONDS:
        stale.unlink()
  facts = entry._asdict()
  arrays = facts.pop("arrays")
  meta = np.array(json.dumps(facts))
  with atomic(path) as temporary, open(temporary, "wb") as file:
    np.savez(file, meta=meta, **arrays._asdict())


def read(path: pathlib.Path, spec: Spec) -> Entry | None:
  """Read an entry and check every byte of it against its SHA-256.

  The check costs 0.1 s for CIFAR-10.

  Returns:
    The entry; None where there is no file.

  Raises:
    UserError: the file is corrupted.
  """
  try:
    arrays, meta = _load(path)
  except FileNotFoundError:
    return None
  except (
    OSError,
    ValueError,
    KeyError,
    TypeError,
    EOFError,
    zlib.error,
    zipfile.BadZipFile,
  ) as error:
    raise UserError(
      f"{path} is corrupted ({first_line(error)}): it is rebuilt"
    ) from error
  sha256 = check(arrays, spec, str(path), "it is rebuilt")
  if sha256 != meta.pop("sha256"):
    raise UserError(f"{path} is corrupted (wrong SHA-256): it is rebuilt")
  return Entry(arrays, sha256=sha256, **meta)


def _load(path: pathlib.Path) -> tuple[Arrays, dict]:
  # np.load leaves a broken file open if it opens it itself.
  with path.open("rb") as opened, np.load(opened) as archive:
    # Earlier versions wrote labels as uint8.
    arrays = with_int32_labels(
      Arrays(*(archive[name] for name in Arrays._fields))
    )
    meta = json.loads(str(archive["meta"]))
  return arrays, {
    "source": meta["source"],
    "sha256": meta["sha256"],
    "mean": tuple(meta["mean"]),
    "std": tuple(meta["std"]),
  }
