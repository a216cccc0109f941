"""Provenance of a result: versions, device, data, commit and resources."""

import importlib.metadata
import pathlib
import platform
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

if TYPE_CHECKING:
  from bdjax.data import Info
  from bdjax.models import Model

_PACKAGES = (
  "jax",
  "jaxlib",
  "flax",
  "optax",
  "orbax-checkpoint",
  "numpy",
  "tensorflow-datasets",
)
# Dense bfloat16 peak, FLOP/s, from the vendor's data sheets.
_PEAK_FLOPS = {
  "NVIDIA H200": 989e12,
  "NVIDIA H100 80GB HBM3": 989e12,
  "NVIDIA A100-SXM4-80GB": 312e12,
  "NVIDIA A100-SXM4-40GB": 312e12,
}
# A backward pass counts as two forward passes.
_PASSES_PER_STEP = 3
_ROOT = pathlib.Path(__file__).parents[1]  # the folder that holds bdjax/


def environment(info: "Info") -> dict[str, Any]:
  """Return the versions, the device and the data of a run, ready for JSON.

  Args:
    info: of the data set.

  Returns:
    `versions` of Python and of the packages, `device` (kind, backend, count,
    processor) and `data` (name, source, sha256).
  """
  device = jax.devices()[0]
  return {
    "versions": {"python": platform.python_version()}
    | {name: importlib.metadata.version(name) for name in _PACKAGES},
    "device": {
      "kind": device.device_kind,
      "backend": jax.default_backend(),
      "count": jax.device_count(),
      "processor": processor(),
    },
    "data": {"name": info.name, "source": info.source, "sha256": info.sha256},
  }


def git_commit() -> str:
  """Return the commit of the sources, 40 hexadecimal digits.

  Returns:
    With `-dirty` behind it where files differ from the commit; `unknown`
    outside a git checkout or without git.
  """
  if not (_ROOT / ".git").exists():  # not that of a repository around it
    return "unknown"
  command = "git describe --always --dirty --abbrev=40 --exclude=*".split()
  try:
    result = subprocess.run(
      command, cwd=_ROOT, capture_output=True, text=True, timeout=10
    )
  except (OSError, subprocess.TimeoutExpired):
    return "unknown"
  return result.stdout.strip() or "unknown"


def processor() -> str:
  """Return the name of the CPU."""
  try:
    text = pathlib.Path("/proc/cpuinfo").read_text(encoding="utf-8")
  except OSError:  # not Linux
    text = ""
  for line in text.splitlines():
    if line.startswith("model name"):
      return line.split(":", 1)[1].strip()
  return platform.processor() or platform.machine()


def peak_memory_bytes() -> dict[str, int | None]:
  """Return the most memory that the process has held so far, in bytes.

  Returns:
    `host`, the peak resident set, None on Windows; `device`, that of the first
    device, None where it keeps no count, as on CPU.
  """
  stats = jax.local_devices()[0].memory_stats() or {}
  return {"host": _peak_host(), "device": stats.get("peak_bytes_in_use")}


def _peak_host():
  try:
    import resource  # Windows has none
  except ImportError:
    return None
  peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  return peak * (1 if sys.platform == "darwin" else 1024)


def flops_per_image(
  model: "Model", shape: tuple[int, int, int]
) -> float | None:
  """Count the floating-point operations of one forward pass, by XLA.

  Args:
    model: the network.
    shape: (H, W, C) of its images.

  Returns:
    Operations an image, a multiplication and an addition being two; None where
    the backend does not count.
  """
  params, batch_stats = jax.eval_shape(model.init, jax.random.key(0))
  image = jax.ShapeDtypeStruct((1, *shape), jnp.float32)

  def forward(params, batch_stats, images):
    return model.apply(params, batch_stats, images)[0]

  analysis = jax.jit(forward).lower(params, batch_stats, image).cost_analysis()
  return (analysis or {}).get("flops")


def share_of_peak(
  flops: float | None, images_per_second: float
) -> float | None:
  """Return the share of the device's bfloat16 peak that training reaches.

  Args:
    flops: of one forward pass of an image; a training step counts as three.
    images_per_second: of training, over all devices.

  Returns:
    A share, in the vendor's dense FLOP/s; None where `flops` or the peak of the
    device is unknown.
  """
  peak = _PEAK_FLOPS.get(jax.devices()[0].device_kind)
  if not peak or not flops:
    return None
  return (
    _PASSES_PER_STEP * flops * images_per_second / (peak * jax.device_count())
  )
