"""Combines the results of runs that differ in their seed."""

from typing import Any

import numpy as np

from bdjax import metrics


def combine_seeds(runs: list[dict[str, Any]]) -> dict[str, Any]:
  """Combine the results of runs that differ in their seed.

  Args:
    runs: their `results.json`.

  Returns:
    `measured`: mean and interval over seeds of every score that all have;
    `difference`: clean minus benchmark, paired by seed; `trigger_diversity`;
    seconds are sums, speeds means, memory is the largest.
  """
  names = set.intersection(*(set(run["measured"]) for run in runs))
  measured = {
    name: metrics.over_seeds([run["measured"][name]["mean"] for run in runs])
    for name in runs[0]["measured"]
    if name in names
  }
  out = runs[0] | {"measured": {k: v._asdict() for k, v in measured.items()}}
  del out["details"]
  diversity = [run["details"].get("trigger_diversity") for run in runs]
  if None not in diversity:
    score = metrics.student_interval(diversity, "seeds", "number")
    out["trigger_diversity"] = score._asdict()
  if "benchmark_accuracy" in measured:
    gaps = [run["difference"]["mean"] for run in runs]
    out["difference"] = metrics.difference_over_seeds(gaps)._asdict()
  out["seeds"] = [seed for run in runs for seed in run["seeds"]]
  out["seconds"] = add([run["seconds"] for run in runs])
  speeds = [run["images_per_second"] for run in runs]
  out["images_per_second"] = float(np.mean(speeds))
  peaks = [run["peak_memory_bytes"] for run in runs]
  out["peak_memory_bytes"] = {
    key: max(peak[key] or 0 for peak in peaks) or None for key in peaks[0]
  }
  return out


def combine_defenses(runs: list[dict[str, Any]]) -> dict[str, Any]:
  """Combine the results of a defence on runs that differ in their seed.

  Shares of test images and numbers become means with intervals over seeds,
  shares of labels are pooled; what is a list by class stays as a list of lists.

  Args:
    runs: their `results.json`.
  """
  names = set.intersection(*(set(run["measured"]) for run in runs))
  measured = {
    name: _over_seeds([run["measured"][name] for run in runs])
    for name in runs[0]["measured"]
    if name in names
  }
  out = runs[0] | {"measured": measured}
  del out["details"]
  out["seeds"] = [seed for run in runs for seed in run["seeds"]]
  out["seconds"] = {
    key: sum(run["seconds"][key] for run in runs) for key in out["seconds"]
  }
  return out


def _over_seeds(values: list[Any]) -> Any:
  if len(values) == 1:
    return values[0]
  if all(isinstance(v, dict) for v in values):
    if values[0]["over"] == "labels":
      total = sum(v["n"] for v in values)
      mean = sum(v["mean"] * v["n"] for v in values) / total
      return metrics.proportion(mean, total, "labels")._asdict()
    means = [v["mean"] for v in values]
    return metrics.over_seeds(means, values[0]["unit"])._asdict()
  if all(isinstance(v, int | float) for v in values):
    numbers = list(map(float, values))
    return metrics.student_interval(numbers, "seeds", "number")._asdict()
  return values


def add(parts: list[dict[str, float]]) -> dict[str, float]:
  """Return the sum of each entry."""
  return {key: sum(part[key] for part in parts) for key in parts[0]}
