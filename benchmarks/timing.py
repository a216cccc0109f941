"""Times things that are to be compared, in turns, and reports them.

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

from benchmarks import roofline, surroundings


class Comparison(NamedTuple):
  """What is timed together.

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
    wanted: the ratio that is claimed or aimed at, in words.
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
  wanted: str = ""
  sizes: Mapping[str, tuple[float, float]] = {}


class Spread(NamedTuple):
  """A median and the ends."""

  median: float
  low: float
  high: float


def spread(values: list[float]) -> Spread:
  """Of at least one value."""
  return Spread(statistics.median(values), min(values), max(values))


def interleaved(
  functions: Mapping[str, Callable[[], Any]], repeats: int = 5
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


def ratios(seconds: Mapping[str, list[float]]) -> dict[str, Spread]:
  """How many times as long as the first each other takes, turn by turn."""
  ours, *others = seconds
  return {
    name: spread(
      [b / a for a, b in zip(seconds[ours], seconds[name], strict=True)]
    )
    for name in others
  }


def slope(sizes: list[float], values: list[float]) -> float:
  """The exponent p of values ~ sizes ** p: least squares of the logarithms."""
  fit = np.polyfit(np.log(sizes), np.log(values), 1)
  return float(fit[0])


def slopes(
  comparison: Comparison, seconds: Mapping[str, list[float]]
) -> dict[str, float]:
  """The growth of a call's seconds and of its operations with the size."""
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
  comparison: Comparison, repeats: int, bf16: bool = False
) -> dict[str, Any]:
  """Times a comparison.

  Args:
    comparison: what is compared.
    repeats: timings of each.
    bf16: whether the arithmetic is bfloat16, for its ceiling.

  Returns:
    What its line of JSON holds; `seconds` are for one item.
  """
  begin, before = time.perf_counter(), surroundings.cpu_seconds()
  raw = interleaved(comparison.functions, repeats)
  elapsed, after = time.perf_counter() - begin, surroundings.cpu_seconds()
  seconds = {
    name: [
      s / comparison.items / comparison.parts.get(name, 1.0) for s in values
    ]
    for name, values in raw.items()
  }
  line = {
    "claim": comparison.claim,
    "wanted": comparison.wanted,
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
      roofline.ceilings(bf16),
    )
  if before and after:
    line["others"] = others(before, after, elapsed)
  return line | surroundings.describe()


def others(
  before: tuple[float, float], after: tuple[float, float], elapsed: float
) -> float:
  """The share of the machine's CPU time that other processes took meanwhile.

  Args:
    before: `surroundings.cpu_seconds()`.
    after: the same, later.
    elapsed: seconds between them.
  """
  whole, own = [b - a for a, b in zip(before, after, strict=True)]
  return max(0.0, whole - own) / max(elapsed * (os.cpu_count() or 1), 1e-9)


def report(line: dict[str, Any]) -> None:
  """Prints a comparison for a person, and its line of JSON."""
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
  if line["wanted"]:
    print(f"  wanted: {line['wanted']}")
  print(json.dumps(line), flush=True)


def duration(seconds: float) -> str:
  """Three digits with a unit."""
  for unit, size in (("s", 1.0), ("ms", 1e-3)):
    if seconds >= size:
      return f"{seconds / size:.3g} {unit}"
  return f"{seconds / 1e-6:.3g} us"
