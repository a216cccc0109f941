"""PyTorch state dicts out of pickled files, which torch opens by itself."""

import importlib.metadata
import importlib.util
import os
import pathlib
import re
import subprocess
import sys
import tempfile

import numpy as np

from bdjax.errors import UserError
from bdjax.files import printable
from bdjax.models.importers import checks, safetensors

# Before 2.6 `weights_only` could be made to run code (CVE-2025-32434).
_TORCH = (2, 6)
_PROGRAM = pathlib.Path(__file__).with_name("unpickler.py")
_CONVERT = (
  "convert it where it was made, with safetensors.torch.save_file("
  "model.state_dict(), 'model.safetensors')"
)


def read(path: str | os.PathLike) -> dict[str, np.ndarray]:
  """Read the arrays of the state dict in a `.pt` or `.pth` file.

  Nothing is unpickled in this process. torch opens the file in another one,
  with `weights_only=True` and, on Linux, with its memory limited in
  proportion to the file, and writes the tensors as safetensors, which are
  read like any other.

  Args:
    path: the file.

  Returns:
    Finite float32 arrays by name; counters of batches are left out.

  Raises:
    UserError: torch is missing or too old, or refuses the file; or it is
      damaged, too large, or holds anything but a state dict.
  """
  file = checks.require_file(path)
  size = file.stat().st_size
  checks.require_bytes(path, size, size)
  _require_torch(path)
  with tempfile.TemporaryDirectory(prefix="bdjax-") as directory:
    target = pathlib.Path(directory, "weights.safetensors")
    # -P: modules beside the program have the names of torch's own imports.
    done = subprocess.run(
      [sys.executable, "-P", _PROGRAM, file.absolute(), target],
      capture_output=True,
      text=True,
      errors="replace",
    )
    if done.returncode:
      reason = "torch crashes on it"
      if done.returncode == 1 and "Traceback" not in done.stderr:
        reason = printable(done.stderr.splitlines()[-1], 200)
      raise UserError(f"{path}: {reason}: {_CONVERT}")
    return safetensors.read(target, shown=path)


def _require_torch(path: str | os.PathLike) -> None:
  """Check that torch is installed and its `weights_only` is safe."""
  if importlib.util.find_spec("torch") is None:
    raise UserError(
      f"{path}: only torch opens this kind of file, and it is not installed: "
      f"install torch 2.6 or later, or {_CONVERT}"
    )
  version = importlib.metadata.version("torch")
  if tuple(map(int, re.findall(r"\d+", version)[:2])) < _TORCH:
    raise UserError(
      f"{path}: such a file can make torch {version} run code: install torch "
      f"2.6 or later, or {_CONVERT}"
    )
