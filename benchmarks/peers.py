"""Import of the peers, where they are installed."""

import functools
import importlib
import types

_INSTALL = {
  "torch": "torch",
  "art": "adversarial-robustness-toolbox",
}


@functools.cache
def package(name: str) -> types.ModuleType | None:
  """Import an optional package; print one line if it is not installed."""
  try:
    return importlib.import_module(name)
  except ModuleNotFoundError as error:
    if error.name != name:
      raise
    print(f"{name} is not installed, so it is left out: pip install", end=" ")
    print(_INSTALL[name], flush=True)
    return None


def load(name: str) -> types.ModuleType | None:
  """Import a module of `benchmarks.pytorch`; None without torch."""
  if package("torch") is None:
    return None
  return importlib.import_module(f"benchmarks.pytorch.{name}")
