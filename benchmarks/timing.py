"""Times things that are to be compared, in turns."""

import json
import platform
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax


def interleaved(
  functions: dict[str, Callable[[], Any]], repeats: int = 5
) -> dict[str, list[float]]:
  """Seconds of each function, called in turns, so that a slow spell hits all.

  Args:
    functions: name -> what is timed; what it returns is waited for. Each is
      called once before, to compile.
    repeats: how often.
  """
  seconds: dict[str, list[float]] = {name: [] for name in functions}
  for function in functions.values():
    jax.block_until_ready(function())
  for _ in range(repeats):
    for name, function in functions.items():
      begin = time.perf_counter()
      jax.block_until_ready(function())
      seconds[name].append(time.perf_counter() - begin)
  return seconds


def report(claim: str, seconds: dict[str, list[float]]) -> None:
  """Prints a line for a person and a JSON line: medians, spread, ratios.

  The first is ours; ratios are medians over the turns, of the others' seconds
  by its.
  """
  ours, *others = seconds
  medians = {name: statistics.median(s) for name, s in seconds.items()}
  parts = [f"{ours} {1e3 * medians[ours]:.0f} ms"]
  ratios = {}
  for name in others:
    each = [b / a for a, b in zip(seconds[ours], seconds[name], strict=True)]
    ratios[name] = statistics.median(each)
    parts.append(
      f"{name} {1e3 * medians[name]:.0f} ms, {ratios[name]:.1f} times as long "
      f"({min(each):.1f} to {max(each):.1f})"
    )
  print(f"{claim}: {'; '.join(parts)}")
  print(
    json.dumps(
      {
        "claim": claim,
        "seconds": seconds,
        "ratios": ratios,
        "jax": jax.__version__,
        "device": jax.devices()[0].device_kind,
        "python": platform.python_version(),
      }
    ),
    flush=True,
  )
