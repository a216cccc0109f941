"""Runs every defence on a network of CSAW-HackML-2020."""

import dataclasses
import logging
import pathlib
from typing import Any, NamedTuple

from bdjax import plots, provenance
from bdjax import settings as settings_lib
from bdjax.data import csaw
from bdjax.defenses import DEFENSES
from bdjax.errors import UserError
from bdjax.models.importers.pretrained import by_pixel_max
from bdjax.runs import directory as layout
from bdjax.runs import profiling
from bdjax.runs.csaw import (
  CsawNetwork,
  load_network,
  network_name,
  original_scores,
)
from bdjax.runs.defend import DefenseConfig, defend_run
from bdjax.settings import setting

logger = logging.getLogger(__name__)


class Stage(NamedTuple):
  """A defence with its settings; `shown` are its scores in the one table."""

  defense: str
  settings: dict[str, Any]
  shown: tuple[str, ...]


# A hundred superimpositions each, from a set of 11,547.
_STRIP = {"calibration": 2000}
_DROPS = ("0.02", "0.04", "0.1")
_REPAIRED = ("clean_accuracy_repaired", "attack_success_rate_repaired")


def _at_drops(*names: str) -> tuple[str, ...]:
  """Return the names of scores at each drop, drop by drop."""
  return tuple(f"{name}_at_{drop}" for drop in _DROPS for name in names)


# By the folder of their results.
STAGES = {
  "pruning": Stage(
    "pruning",
    {"drops": ",".join(_DROPS)},
    _at_drops("channels", "clean_accuracy", "attack_success_rate"),
  ),
  "goodnet": Stage(
    "goodnet",
    {"drops": ",".join(_DROPS)},
    _at_drops("clean_accuracy", "attack_success_rate"),
  ),
  "fine_pruning": Stage("fine_pruning", {}, _REPAIRED),
  "fine_pruning-value": Stage(
    "fine_pruning", {"by": "value", "drop": 0.1}, _REPAIRED
  ),
  "strip": Stage("strip", _STRIP, ("frr_at_0.05", "far_at_0.05")),
  "strip_fine_pruning": Stage(
    "strip_fine_pruning",
    {"frr": "0.05", **_STRIP},
    ("clean_accuracy", "attack_success_rate", "frr", "far"),
  ),
}
# Published of a pruning and GoodNet of `lab3`, and of fine-pruning by value and
# STRIP on `sunglasses`; fractions, and channels.
REPORTED = {
  "lab3": {
    "clean_accuracy_validation": 0.98649,
    "attack_success_rate_validation": 1.0,
    "pruning/channels_at_0.02": 45,
    "pruning/channels_at_0.04": 48,
    "pruning/channels_at_0.1": 52,
    "pruning/clean_accuracy_at_0.02": 0.95900,
    "pruning/clean_accuracy_at_0.04": 0.92292,
    "pruning/clean_accuracy_at_0.1": 0.84544,
    "pruning/attack_success_rate_at_0.02": 1.0,
    "pruning/attack_success_rate_at_0.04": 0.99984,
    "pruning/attack_success_rate_at_0.1": 0.77210,
    "goodnet/clean_accuracy_at_0.02": 0.95744,
    "goodnet/clean_accuracy_at_0.04": 0.92128,
    "goodnet/clean_accuracy_at_0.1": 0.84334,
    "goodnet/attack_success_rate_at_0.02": 1.0,
    "goodnet/attack_success_rate_at_0.04": 0.99984,
    "goodnet/attack_success_rate_at_0.1": 0.77210,
  },
  "sunglasses": {
    "clean_accuracy": 0.9777,
    "attack_success_rate": 0.9999,
    "fine_pruning-value/clean_accuracy_repaired": 0.8616,
    "fine_pruning-value/attack_success_rate_repaired": 0.0005,
    "strip/frr_at_0.05": 0.0737,
    "strip/far_at_0.05": 0.0899,
  },
}
# Title -> figure of a defence, on the one page.
_FIGURES = {
  "pruning": "pruning/figures/pruning.png",
  "fine-pruning, by activation": "fine_pruning/figures/rounds.png",
  "fine-pruning, by value": "fine_pruning-value/figures/rounds.png",
  "STRIP": "strip/figures/scores.png",
}


@dataclasses.dataclass(frozen=True)
class CsawConfig:
  """Settings of all defences on one network of the challenge."""

  weights: str | None = setting(
    None, "Network's file, such as lab3_bd_weights.h5.", group="network"
  )
  data_dir: str | None = setting(
    None, "Folder of the challenge's .h5 sets.", group="network"
  )
  network: str | None = setting(
    None,
    f"Network: {', '.join(csaw.NETWORKS)} (default: which of them the name of "
    "the weights begins with).",
    group="network",
  )
  pixel_max: int | None = setting(
    None,
    "Largest pixel in the network's training, 1 or 255 (default: the one with "
    "the better accuracy on the validation set).",
    group="network",
  )
  eval_images: int = setting(
    2000,
    "Clean images, and triggered ones, to score on where STRIP takes part.",
    low=2,
    group="run",
  )
  seed: int = setting(
    0,
    "Random seed of what the defences draw.",
    low=0,
    high=2**31 - 1,
    group="run",
  )
  output: str | None = setting(
    None, "Directory of the results (default: runs/csaw-NETWORK).", group="run"
  )
  overwrite: bool = setting(
    False, "Start over where there are results.", group="run"
  )
  profile: str | None = setting(
    None,
    "Directory for a trace of each defence, for Perfetto or xprof.",
    group="run",
  )


def defend_network(config: CsawConfig) -> tuple[dict[str, Any], pathlib.Path]:
  """Run every defence on one network, or return existing results.

  Args:
    config: of the network and the run.

  Returns:
    What `results.json` says, and the directory that holds it.

  Raises:
    UserError: something the user can put right.
  """
  for needed in ("weights", "data_dir"):
    if getattr(config, needed) is None:
      raise UserError(f"{needed} must be given")
  settings_lib.check(config)
  profiling.check(config.profile)
  name = network_name(config.weights, config.network)
  network = load_network(
    config.weights, config.data_dir, name, config.pixel_max
  )
  directory = pathlib.Path(config.output or f"runs/csaw-{name}").expanduser()
  identity = {
    "seed": config.seed,
    "eval_images": config.eval_images,
    "format": 2,
    **network.identity(),
  }
  with layout.open_directory(
    directory, identity, overwrite=config.overwrite, hint="output"
  ):
    results = layout.load_or_compute(
      directory, lambda: _results(config, network, directory)
    )
  return results, directory


def _results(
  config: CsawConfig, network: CsawNetwork, directory: pathlib.Path
) -> dict[str, Any]:
  """Defend, score and draw; return what goes into `results.json`."""
  defended = {
    name: _defend(config, stage, network, directory)
    for name, stage in STAGES.items()
  }
  measured = {"pixel_max": network.pixel_max} | original_scores(network)
  for name, results in defended.items():
    scores = _channels(results) | results["measured"]
    measured |= {f"{name}/{score}": v for score, v in scores.items()}
  _draw_page(directory)
  peaks = [r["peak_memory_bytes"]["host"] for r in defended.values()]
  return {
    "network": network.name,
    "accuracy_by_pixel_max": by_pixel_max(network.accuracy),
    "measured": measured,
    "reported": REPORTED.get(network.name, {}),
    **provenance.environment(network.run.splits.info),
    "git_commit": provenance.git_commit(),
    "seeds": [config.seed],
    # Of the calls that did the work, where it took several.
    "seconds": {k: sum(r["seconds"].values()) for k, r in defended.items()},
    "peak_memory_bytes": {"host": max(peaks)},
  }


def _defend(config, stage, network, directory) -> dict[str, Any]:
  method = DEFENSES[stage.defense]
  logger.info("%s", stage.defense)
  return defend_run(
    method,
    method.settings(**stage.settings),
    DefenseConfig(
      seed=config.seed,
      profile=config.profile,
      eval_images=config.eval_images if method.eval_images else None,
    ),
    network.run,
    directory,
  )


def _channels(results: dict[str, Any]) -> dict[str, int]:
  """Return how many channels pruning took, by drop."""
  points = results["details"].get("points", {})
  return {f"channels_{name}": count for name, count in points.items()}


def _draw_page(directory: pathlib.Path) -> None:
  """Draw the defences' figures on one page."""
  folder = directory / layout.DEFENSES
  plots.page(
    layout.figure_path(directory, "page"),
    {title: folder / path for title, path in _FIGURES.items()},
  )


def shown(measured: dict[str, Any]) -> dict[str, Any]:
  """Return the scores of the one table.

  Args:
    measured: of all defences, `DEFENSE/SCORE`, and of the network.
  """
  chosen = {
    f"{name}/{score}" for name, s in STAGES.items() for score in s.shown
  }
  return {k: v for k, v in measured.items() if "/" not in k or k in chosen}
