"""What a figure was measured with: machine, versions, command, date."""

import datetime
import importlib.metadata
import os
import platform
import sys
from typing import Any

import jax

from experiments.common import results

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
  """`benchmark`, `command`, `date`, `commit`, `machine`, `versions`."""
  module = getattr(sys.modules["__main__"], "__spec__", None)
  name = module.name if module else "benchmarks"
  device = jax.devices()[0].device_kind
  machine = f"{results.processor()}, {os.cpu_count()} cores"
  if jax.default_backend() != "cpu":
    machine = f"{device}; {machine}"
  return {
    "benchmark": name.removeprefix("benchmarks."),
    "command": " ".join(["python -m", name, *sys.argv[1:]]),
    "date": datetime.date.today().isoformat(),
    "commit": results.git_commit()[:12],
    "machine": machine,
    "versions": {"python": platform.python_version()} | _versions(),
  }


def _versions():
  found = {}
  for name in _PACKAGES:
    try:
      found[name] = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
      pass
  return found
