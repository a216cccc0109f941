"""The environment of a measurement: machine, versions, command, date."""

import datetime
import importlib.metadata
import os
import pathlib
import platform
import sys
from typing import Any

import jax

from bdjax import provenance

_PACKAGES = (
  "jax",
  "jaxlib",
  "flax",
  "optax",
  "numpy",
  "torch",
  "adversarial-robustness-toolbox",
)


def describe() -> dict[str, Any]:
  """Return what a measurement was made with, ready for JSON.

  Returns:
    `benchmark`, `command`, `date`, `commit`, `machine`, `versions`.
  """
  module = getattr(sys.modules["__main__"], "__spec__", None)
  name = module.name if module else "benchmarks"
  machine = f"{provenance.processor()}, {os.cpu_count()} cores"
  if jax.default_backend() != "cpu":
    machine = f"{jax.devices()[0].device_kind}; {machine}"
  return {
    "benchmark": name.removeprefix("benchmarks."),
    "command": " ".join(["python -m", name, *sys.argv[1:]]),
    "date": datetime.date.today().isoformat(),
    "commit": provenance.git_commit()[:12],
    "machine": machine,
    "versions": {"python": platform.python_version()} | _versions(),
  }


def cpu_seconds() -> tuple[float, float] | None:
  """Return the CPU time spent so far by the machine and by this process.

  Returns:
    Seconds of all processes, and of this one with its finished children; None
    where the system has no `/proc/stat`.
  """
  try:
    fields = pathlib.Path("/proc/stat").read_text().split("\n", 1)[0].split()
  except OSError:
    return None
  user, nice, system, _, _, irq, softirq, steal = map(int, fields[1:9])
  ticks = user + nice + system + irq + softirq + steal
  return ticks / os.sysconf("SC_CLK_TCK"), sum(os.times()[:4])


def _versions():
  versions = {}
  for name in _PACKAGES:
    try:
      versions[name] = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
      pass
  return versions
