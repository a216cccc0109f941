"""`results.json` and the table at the end of a run."""

import importlib.metadata
import pathlib
import platform
import resource
import subprocess
import sys
from typing import Any

import jax
import numpy as np
import rich.box
import rich.console
import rich.table

from bdjax import metrics
from bdjax.data import Info
from experiments.common.config import Config

# Published figures, ResNet-18 with the ImageNet stem: clean accuracy of the
# backdoored model, attack success rate, and accuracy of the clean model.
# Fractions. They stand beside ours; nothing is computed from them.
_RANDOM_MNIST = {"clean_accuracy": 0.9881, "attack_success_rate": 0.9852}
_BAN_MNIST = {"clean_accuracy": 0.9853, "attack_success_rate": 0.942}
_RANDOM_CIFAR = {
  "clean_accuracy": 0.8248,
  "attack_success_rate": 0.9763,
  "benchmark_accuracy": 0.841,
}
_BAN_CIFAR = {
  "clean_accuracy": 0.837,
  "attack_success_rate": 0.9997,
  "benchmark_accuracy": 0.841,
}
REPORTED = {
  ("random_backdoor", "mnist"): _RANDOM_MNIST,
  ("ban", "mnist"): _BAN_MNIST,
  ("random_backdoor", "cifar10"): _RANDOM_CIFAR,
  ("ban", "cifar10"): _BAN_CIFAR,
  ("clean", "cifar10"): {"clean_accuracy": 0.841},
}
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
_PEAK = {
  "NVIDIA H200": 989e12,
  "NVIDIA H100 80GB HBM3": 989e12,
  "NVIDIA A100-SXM4-80GB": 312e12,
  "NVIDIA A100-SXM4-40GB": 312e12,
}


def reported(config: Config) -> dict[str, float]:
  """The literature's figures for this experiment and dataset, or `{}`."""
  if config.target_labels is not None and (
    config.target_labels == "all" or "," in config.target_labels
  ):
    return {}
  return REPORTED.get((config.experiment, config.dataset), {})


def surroundings(info: Info) -> dict[str, Any]:
  """Versions, device and data: what a run was made with."""
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
  """The commit of the sources, `-dirty` where they differ; else `unknown`."""
  root = pathlib.Path(__file__).parents[2]
  command = [
    "git",
    "describe",
    "--always",
    "--dirty",
    "--abbrev=40",
    "--exclude=*",
  ]
  if not (root / ".git").exists():  # not that of a repository around us
    return "unknown"
  try:
    out = subprocess.run(
      command, cwd=root, capture_output=True, text=True, timeout=10
    )
  except (OSError, subprocess.TimeoutExpired):
    return "unknown"
  return out.stdout.strip() or "unknown"


def processor() -> str:
  """The name of the CPU."""
  try:
    for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines():
      if line.startswith("model name"):
        return line.split(":", 1)[1].strip()
  except OSError:
    pass
  return platform.processor() or platform.machine()


def peak_memory_bytes() -> dict[str, int | None]:
  """The process's peak resident set, and the accelerator's peak use."""
  peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  stats = jax.local_devices()[0].memory_stats() or {}
  return {
    "host": peak * (1 if sys.platform == "darwin" else 1024),
    "device": stats.get("peak_bytes_in_use"),
  }


def flops_per_image(model, shape: tuple[int, int, int]) -> float | None:
  """Floating-point operations of one forward pass, counted by XLA."""
  params, batch_stats = jax.eval_shape(model.init, jax.random.key(0))
  image = jax.ShapeDtypeStruct((1, *shape), jax.numpy.float32)

  def forward(params, batch_stats, images):
    return model.apply(params, batch_stats, images, False)[0]

  analysis = jax.jit(forward).lower(params, batch_stats, image).cost_analysis()
  return (analysis or {}).get("flops")


def share_of_peak(flops: float | None, images_per_second: float):
  """Model FLOP/s in training over the device's peak; None if unknown.

  A training step counts three forward passes an image.
  """
  peak = _PEAK.get(jax.devices()[0].device_kind)
  if not peak or not flops:
    return None
  return 3 * flops * images_per_second / (peak * jax.device_count())


def as_json(measured: dict[str, metrics.Score]) -> dict[str, Any]:
  """Scores as `{mean, low, high, n, over}`."""
  return {name: score._asdict() for name, score in measured.items()}


def combine(members: list[dict[str, Any]]) -> dict[str, Any]:
  """The results of a group of runs that differ in their seed.

  Args:
    members: their `results.json`.

  Returns:
    `measured`: mean and interval over seeds of every score that all have;
    `difference`: clean minus benchmark, paired by seed; seconds are sums,
    speeds means, memory is the largest.
  """
  names = set.intersection(*(set(m["measured"]) for m in members))
  measured = {
    name: metrics.over_seeds([m["measured"][name]["mean"] for m in members])
    for name in sorted(names)
  }
  out = members[0] | {"measured": as_json(measured)}
  del out["details"]
  if "benchmark_accuracy" in measured:
    gaps = [m["difference"]["mean"] for m in members]
    out["difference"] = metrics.difference_over_seeds(gaps)._asdict()
  out["seeds"] = [seed for m in members for seed in m["seeds"]]
  for name in ("seconds", "images_per_second", "peak_memory_bytes"):
    parts = [m[name] for m in members]
    reduce = {"seconds": sums, "peak_memory_bytes": largest}.get(name, np.mean)
    out[name] = reduce(parts)
  return out


def sums(parts: list[dict[str, float]]) -> dict[str, float]:
  """The sum of each entry."""
  return {key: sum(part[key] for part in parts) for key in parts[0]}


def largest(parts: list[dict[str, int | None]]) -> dict[str, int | None]:
  """The largest of each entry; None where none is known."""
  return {
    key: max(part[key] or 0 for part in parts) or None for key in parts[0]
  }


TITLES = {
  "clean_accuracy": "clean accuracy",
  "attack_success_rate": "attack success rate",
  "robust_accuracy": "robust accuracy",
  "benchmark_accuracy": "benchmark accuracy",
}


def print_table(results: dict[str, Any], directory: pathlib.Path) -> None:
  """Prints measured scores, and of a sweep those of every setting."""
  title = f"{results['config']['experiment']} on {results['data']['name']}"
  console = rich.console.Console(highlight=False)
  make = _of_settings if "settings" in results else _of_scores
  table = make(results)
  table.title, table.title_justify = title, "left"
  table.box = rich.box.SIMPLE_HEAD
  console.print(table)
  if "difference" in results:
    # Zero is added so that nothing is not printed as minus nothing.
    cost = round(-100 * results["difference"]["mean"], 2) + 0.0
    console.print(f"  cost in clean accuracy: {cost:.2f} points")
  console.print(f"  {directory}", soft_wrap=True)


def _of_scores(results: dict[str, Any]) -> rich.table.Table:
  """A row a score, with what the literature reports beside it."""
  published = results["reported"]
  table = rich.table.Table("score")
  table.add_column("measured", justify="right")
  over = {s["over"] for s in results["measured"].values()}
  table.add_column(f"95% interval over {' / '.join(sorted(over))}")
  if published:
    table.add_column("reported", justify="right")
  for name, title in TITLES.items():
    score = results["measured"].get(name)
    if score is None:
      continue
    row = [
      title,
      f"{score['mean']:.2%}",
      f"{score['low']:.2%} to {score['high']:.2%}",
    ]
    if published:
      row.append(f"{published[name]:.2%}" if name in published else "")
    table.add_row(*row)
  return table


def _of_settings(results: dict[str, Any]) -> rich.table.Table:
  """A row a setting, with the two scores that matter most."""
  fields, names = results["config"]["swept"], tuple(TITLES)[:2]
  table = rich.table.Table(*(field.replace("_", " ") for field in fields))
  for name in names:
    table.add_column(f"{TITLES[name]}, %", justify="right")
  for row in results["settings"]:
    scores = [row["measured"][name] for name in names]
    parts = [[100 * s[k] for k in ("mean", "low", "high")] for s in scores]
    cells = [f"{a:.1f} ({b:.1f} to {c:.1f})" for a, b, c in parts]
    table.add_row(*(str(row[field]) for field in fields), *cells)
  return table
