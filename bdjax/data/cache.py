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

from bdjax.data.arrays import channel_statistics, check
from bdjax.data.base import Arrays
from bdjax.data.specs import Spec
from bdjax.errors import UserError

_STALE_SECONDS = 3600


class Entry(NamedTuple):
  """A dataset with all that `Info` says of its bytes."""

  arrays: Arrays
  source: str
  sha256: dict[str, str]
  mean: tuple[float, ...]
  std: tuple[float, ...]


def entry(arrays: Arrays, source: str, sha256: dict[str, str]) -> Entry:
  """Completes an entry: computes the statistics."""
  return Entry(arrays, source, sha256, *channel_statistics(arrays.x_train))


def path_of(name: str, root: pathlib.Path) -> pathlib.Path:
  """Returns where the arrays of dataset `name` of the folder `root` belong.

  Under XDG_CACHE_HOME where that is an absolute path, as its standard says,
  else under ~/.cache. Another root is another file.
  """
  given = os.environ.get("XDG_CACHE_HOME", "")
  home = pathlib.Path(given if os.path.isabs(given) else "~/.cache")
  tag = hashlib.sha256(os.fsencode(root.absolute())).hexdigest()[:8]
  return home.expanduser() / "bdjax" / "data" / f"{name}-{tag}.npz"


def write(path: pathlib.Path, new: Entry) -> None:
  """Writes an entry beside its place, then renames it there.

  Raises:
    OSError: read-only or full disk; nothing is left behind.
  """
  path.parent.mkdir(parents=True, exist_ok=True)
  for left in path.parent.glob(f".{path.name}.*"):  # of a run that was killed
    with contextlib.suppress(FileNotFoundError):
      if time.time() - left.stat().st_mtime > _STALE_SECONDS:
        left.unlink()
  meta = json.dumps(
    {
      "source": new.source,
      "sha256": new.sha256,
      "mean": new.mean,
      "std": new.std,
    }
  )
  aside = path.with_name(f".{path.name}.{os.getpid()}")
  try:
    with open(aside, "wb") as file:
      np.savez(file, meta=np.array(meta), **new.arrays._asdict())
    aside.replace(path)
  except BaseException:
    aside.unlink(missing_ok=True)
    raise


def read(path: pathlib.Path, spec: Spec) -> Entry | None:
  """Reads an entry and checks every byte of it against its SHA-256.

  The check costs 0.1 s for CIFAR-10: less than wondering.

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
    raise UserError(f"{path} is corrupted ({error}): it is rebuilt") from error
  sha256 = check(arrays, spec, str(path), "it is rebuilt")
  if sha256 != meta.pop("sha256"):
    raise UserError(f"{path} is corrupted (wrong SHA-256): it is rebuilt")
  return Entry(arrays, sha256=sha256, **meta)


def _load(path: pathlib.Path) -> tuple[Arrays, dict]:
  # np.load leaves a broken file open if it opens it itself.
  with path.open("rb") as opened, np.load(opened) as archive:
    arrays = Arrays(*(archive[name] for name in Arrays._fields))
    meta = json.loads(str(archive["meta"]))
  return arrays, {
    "source": meta["source"],
    "sha256": meta["sha256"],
    "mean": tuple(meta["mean"]),
    "std": tuple(meta["std"]),
  }
