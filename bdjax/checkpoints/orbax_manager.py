"""Orbax's manager of checkpoints: without its logs, and its known failures."""

import errno
import logging
import os
import pathlib
import shutil

import orbax.checkpoint as ocp
from absl import logging as absl_logging
from orbax.checkpoint import checkpoint_managers

from bdjax.checkpoints import contents

_OVERHEAD_BYTES = 2**20  # of orbax's own files: 14 of a few hundred bytes


def _is_not_orbax(record: logging.LogRecord) -> bool:
  return f"{os.sep}orbax{os.sep}" not in record.pathname


# Orbax logs each of its steps, and each failure once per thread with a
# traceback, through absl's one logger. All that matters is raised as well.
absl_logging.get_absl_logger().addFilter(_is_not_orbax)


def open_manager(
  directory: pathlib.Path,
  policy: checkpoint_managers.PreservationPolicy,
  *,
  read_only: bool,
) -> ocp.CheckpointManager:
  """Open orbax's manager of the checkpoints in a directory.

  Args:
    directory: of the steps; it exists, or is only read.
    policy: says which steps stay.
    read_only: make and clean up nothing.
  """
  return ocp.CheckpointManager(
    directory,
    item_names=contents.ITEMS,
    options=ocp.CheckpointManagerOptions(
      preservation_policy=policy,
      create=False,
      read_only=read_only,
      # Else threads wait for minutes for a directory that cannot be made, and
      # keep the process alive.
      async_options=ocp.AsyncOptions(create_directories_asynchronously=False),
      # Orbax would read its own metadata of every step, and fail on the first
      # that is damaged.
      lightweight_initialize=True,
    ),
  )


def require_space(directory: pathlib.Path, nbytes: int) -> None:
  """Fail before orbax does, whose threads print their errors.

  Args:
    directory: where a step is to be written.
    nbytes: of its arrays.

  Raises:
    OSError: the disk has less than that.
  """
  if shutil.disk_usage(directory).free < nbytes + _OVERHEAD_BYTES:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
