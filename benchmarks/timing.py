"""Timing of functions in turns, and the report of a comparison.

A line of JSON a comparison holds everything that RESULTS.md is made from.
"""

import json
import os
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from benchmarks import environment, roofline


class Comparison(NamedTuple):
  """Functions that are timed together.

  Attributes:
    claim: what is compared, for a person: the network, the sizes.
    functions: name -> what is timed; the first is ours. What it returns is
      waited for where JAX made it; peers wait themselves.
    item: what seconds are given for: `step`, `image`.
    items: how many of them a call of ours does.
    parts: name -> the share of `items` that a call of a slow peer does; 1
      where it is not named. Its seconds are scaled up to the whole.
    operations: floating-point operations of a call of ours, by hand; 0 where
      the comparison is not about arithmetic.
    traffic: bytes that a call of ours must at least move: what it is given and
      what it gives, once each.
    goal: the ratio that is claimed or aimed at, in words.
    sizes: where the functions are one at several sizes, name -> (size,
      operations): how seconds and operations grow is then fitted.
  """

  claim: str
  functions: Mapping[str, Callable[[], Any]]
  item: str = "call"
  items: int = 1
  parts: Mapping[str, float] = {}
  operations: float = 0.0
  traffic: float = 0.0
  goal: str = ""
  sizes: Mapping[str, tuple[float, float]] = {}


class Spread(NamedTuple):
  """The median, the lowest and the highest of some values."""

  median: float
  low: float
  high: float


def spread(values: list[float]) -> Spread:
  """Summarise at least one value."""
  return Spread(statistics.median(values), min(values), max(values))


def interleaved(
  functions: Mapping[str, Callable[[], Any]], repeats: int = 5
) -> dict[str, list[float]]:
  """Time functions in turns, so that a slow spell of the machine hits all.

  Args:
    functions: name -> what is timed; what it returns is waited for. Each is
      called once before, to compile.
    repeats: timings of each.

  Returns:
    Name -> seconds of each call.
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


def ratios(seconds: Mapping[str, list[float]]) -> dict[str, Spread]:
  """Divide the times of each function by the first one's, turn by turn."""
  ours, *others = seconds
  return {
    name: spread(
      [b / a for a, b in zip(seconds[ours], seconds[name], strict=True)]
    )
    for name in others
  }


def slope(sizes: list[float], values: list[float]) -> float:
  """Fit p of values ~ sizes ** p, by least squares of the logarithms."""
  fit = np.polyfit(np.log(sizes), np.log(values), 1)
  return float(fit[0])


def slopes(
  comparison: Comparison, seconds: Mapping[str, list[float]]
) -> dict[str, float]:
  """Fit how seconds and operations of a call grow with its size."""
  if not comparison.sizes:
    return {}
  sizes = [size for size, _ in comparison.sizes.values()]
  counts = [count for _, count in comparison.sizes.values()]
  medians = [statistics.median(seconds[name]) for name in comparison.sizes]
  return {
    "slope": slope(sizes, medians),
    "operations_slope": slope(sizes, counts),
  }


def measure(
  comparison: Comparison,
  repeats: int,
  bf16: bool = False,
  ceiling_side: int = 0,
) -> dict[str, Any]:
  """Time a comparison.

  Args:
    comparison: the functions and their work.
    repeats: timings of each.
    bf16: whether the arithmetic is bfloat16, for its ceiling.
    ceiling_side: of the matrices that measure the ceilings; 0 by the device.

  Returns:
    Its line of JSON; `seconds` are for one item.
  """
  begin, before = time.perf_counter(), environment.cpu_seconds()
  raw = interleaved(comparison.functions, repeats)
  elapsed, after = time.perf_counter() - begin, environment.cpu_seconds()
  seconds = {
    name: [
      s / comparison.items / comparison.parts.get(name, 1.0) for s in values
    ]
    for name, values in raw.items()
  }
  line = {
    "claim": comparison.claim,
    "goal": comparison.goal,
    "item": comparison.item,
    "items": comparison.items,
    "parts": dict(comparison.parts),
    "seconds": seconds,
    "ratios": {n: r._asdict() for n, r in ratios(seconds).items()},
    **slopes(comparison, raw),
  }
  if comparison.operations:
    line |= roofline.share(
      comparison.operations,
      comparison.traffic,
      statistics.median(next(iter(raw.values()))),
      roofline.ceilings(bf16, ceiling_side),
    )
  if before and after:
    line["others"] = others(before, after, elapsed)
  return line | environment.describe()


def others(
  before: tuple[float, float], after: tuple[float, float], elapsed: float
) -> float:
  """Compute the share of the CPU time that other processes took.

  Args:
    before: `environment.cpu_seconds()`.
    after: the same, later.
    elapsed: seconds between them.

  Returns:
    Of the time of all cores, at least 0.
  """
  whole, own = [b - a for a, b in zip(before, after, strict=True)]
  return max(0.0, whole - own) / max(elapsed * (os.cpu_count() or 1), 1e-9)


def report(line: dict[str, Any], as_json: bool = True) -> None:
  """Print a comparison for people and, unless told not to, as JSON.

  Args:
    line: from `measure`.
    as_json: whether the line of JSON follows, which results are made from.
  """
  ours = next(iter(line["seconds"]))
  print(f"\n{line['claim']}, by {line['item']}")
  for name, seconds in line["seconds"].items():
    s = spread(seconds)
    ratio = line["ratios"].get(name)
    beside = ""
    if ratio:
      beside = f"  {ratio['median']:7.2f} x"
      beside += f" ({ratio['low']:.2f} to {ratio['high']:.2f})"
    times = f"{duration(s.median)} ({duration(s.low)} to {duration(s.high)})"
    print(f"  {name:44s} {times:34s}{beside}")
  if "ceiling" in line:
    print(f"  {ours}: {line['share']:.0%} of the {line['bound']} ceiling")
  if "slope" in line:
    print(
      f"  seconds grow as size ** {line['slope']:.2f}, operations as size ** "
      f"{line['operations_slope']:.2f}"
    )
  if line.get("others", 0.0) > 0.05:
    print(f"  other processes took {line['others']:.0%} of the CPU meanwhile")
  if line["goal"]:
    print(f"  goal: {line['goal']}")
  if as_json:
    print(json.dumps(line), flush=True)


def duration(seconds: float) -> str:
  """Format seconds with three digits and a unit."""
  for unit, size in (("s", 1.0), ("ms", 1e-3)):
    if seconds >= size:
      return f"{seconds / size:.3g} {unit}"
  return f"{seconds / 1e-6:.3g} us"
