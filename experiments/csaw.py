"""The BadNets of CSAW-HackML-2020: every defence on one of its networks.

python -m experiments.csaw --weights=lab3_bd_weights.h5 --data_dir=data

The networks are small files in the challenge's repository, the image sets are
the user's to download (`bdjax.data.csaw`). The validation set is the
defender's; the test set and the triggered ones only score. Reported figures
are those of two published solutions.
"""

import dataclasses
import pathlib
from typing import Any, NamedTuple

import jax

from bdjax import plots
from bdjax.data import csaw
from bdjax.errors import UserError
from experiments import (
  defending,
  fine_pruning,
  goodnet,
  pruning,
  strip,
  strip_fine_pruning,
)
from experiments.common import profiling, results
from experiments.common.cli import say, serve
from experiments.common.rundir import once, open_run
from experiments.common.runner import Report, quiet
from experiments.defending import Exam, flag
from experiments.defending.challenge import Challenge, load, network_name
from experiments.defending.delivered import by_white
from experiments.defending.subject import Subject
from experiments.defending.table import print_table


class Stage(NamedTuple):
  """A defence with its flags; `shown` are its scores in the one table."""

  defense: defending.Defense
  flags: dict[str, Any]
  shown: tuple[str, ...]


# A hundred superimpositions each, from a set of 11,547.
_STRIP = {"calibration": 2000}
_DROPS = ("0.02", "0.04", "0.1")
_REPAIRED = ("clean_accuracy_repaired", "attack_success_rate_repaired")


def _at_drops(*names: str) -> tuple[str, ...]:
  """Scores at each of the falls, drop by drop."""
  return tuple(f"{name}_at_{drop}" for drop in _DROPS for name in names)


_STAGES = {
  "pruning": Stage(
    pruning.DEFENSE,
    {"drops": ",".join(_DROPS)},
    _at_drops("channels", "clean_accuracy", "attack_success_rate"),
  ),
  "goodnet": Stage(
    goodnet.DEFENSE,
    {"drops": ",".join(_DROPS)},
    _at_drops("clean_accuracy", "attack_success_rate"),
  ),
  "fine_pruning": Stage(fine_pruning.DEFENSE, {}, _REPAIRED),
  "fine_pruning-value": Stage(
    fine_pruning.DEFENSE, {"by": "value", "drop": 0.1}, _REPAIRED
  ),
  "strip": Stage(strip.DEFENSE, _STRIP, ("frr_at_0.05", "far_at_0.05")),
  "strip_fine_pruning": Stage(
    strip_fine_pruning.DEFENSE,
    {"frr": "0.05", **_STRIP},
    ("clean_accuracy", "attack_success_rate", "frr", "far"),
  ),
}
# Of a pruning and GoodNet of `lab3`, and of fine-pruning by value and STRIP on
# `sunglasses`; fractions, and channels.
_REPORTED = {
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


@dataclasses.dataclass(frozen=True)
class Config:
  """Flags of the experiment."""

  weights: str | None = flag(None, "The network, such as lab3_bd_weights.h5.")
  data_dir: str | None = flag(None, "The folder of the challenge's .h5 sets.")
  network: str | None = flag(
    None,
    f"{', '.join(csaw.NETWORKS)} (default: which of them the name of the "
    "weights begins with).",
  )
  pixels: int | None = flag(
    None,
    "What white was in the network's training, 1 or 255 (default: what gives "
    "the better accuracy on the validation set).",
  )
  eval_images: int = flag(
    2000, "Where STRIP takes part, clean and triggered images each.", low=2
  )
  seed: int = flag(0, "Of what the defences draw.", low=0)
  output: str | None = flag(
    None, "Where results go (default: runs/csaw-NETWORK)."
  )
  overwrite: bool = flag(False, "Starts over where there are results.")
  profile: str | None = flag(
    None,
    "Directory for a trace of each defence, for Perfetto or TensorBoard.",
  )


def run(
  config: Config, report: Report = quiet, *, show: bool = False
) -> dict[str, Any]:
  """Runs every defence on one network; importable.

  Args:
    config: the flags.
    report: takes lines of progress.
    show: prints a table.

  Returns:
    What stands in `results.json`.

  Raises:
    UserError: something the user can put right.
  """
  _check(config)
  name = network_name(config.weights, config.network)
  network = load(
    config.weights, config.data_dir, name, report, white=config.pixels
  )
  place = pathlib.Path(config.output or f"runs/csaw-{name}").expanduser()
  with open_run(
    place,
    {
      "seed": config.seed,
      "eval_images": config.eval_images,
      **network.identity(),
    },
    overwrite=config.overwrite,
    elsewhere="--output",
  ) as directory:
    out = once(
      directory, report, lambda: _results(config, network, directory, report)
    )
  if show:
    print_table(_shown(out), directory)
  return out


def _results(
  config: Config, network: Challenge, directory: pathlib.Path, report: Report
) -> dict[str, Any]:
  """All scores and the page of figures: what `results.json` says."""
  found = _defend(config, network.subject, directory, report)
  measured = _before(network) | {
    f"{stage}/{score}": value
    for stage, result in found.items()
    for score, value in result["measured"].items()
  }
  _draw_page(directory)
  info = network.subject.splits.info
  name = info.name.removeprefix("csaw-")
  peaks = [r["peak_memory_bytes"]["host"] for r in found.values()]
  return {
    "experiment": "csaw",
    "network": name,
    "accuracy_by_white": by_white(network.accuracy),
    "measured": measured,
    "reported": _REPORTED.get(name, {}),
    **results.surroundings(info),
    "git_commit": results.git_commit(),
    "seeds": [config.seed],
    # Of the starts that did the work, where it took several.
    "seconds": {k: sum(r["seconds"].values()) for k, r in found.items()},
    "peak_memory_bytes": {"host": max(peaks)},
  }


def _check(config: Config) -> None:
  for needed in ("weights", "data_dir"):
    if getattr(config, needed) is None:
      raise UserError(f"--{needed} is missing: see --help")
  defending.check_ranges(config)
  profiling.check(config.profile)


def _before(network: Challenge) -> dict[str, Any]:
  """Scores of the network as it was delivered, on test and validation sets."""
  out = {"pixels_of_white": network.white}
  for suffix, subject in (
    ("", network.subject),
    ("_validation", network.validation),
  ):
    exam = Exam(subject, jax.random.key(0))
    scores = exam.scores(subject.defender.model, subject.defender.weights)
    out |= {f"{k}{suffix}": v._asdict() for k, v in scores.items()}
  return out


def _defend(
  config: Config, subject: Subject, directory: pathlib.Path, report: Report
) -> dict[str, dict[str, Any]]:
  """Every defence, each with results of its own; what is there, is taken."""
  found = {}
  for name, stage in _STAGES.items():
    report(name)
    chosen = dict(stage.flags)
    if stage.defense.eval_images:
      chosen["eval_images"] = config.eval_images
    found[name] = defending.run_on(
      stage.defense,
      stage.defense.config(seed=config.seed, profile=config.profile, **chosen),
      subject,
      directory / "defenses" / name,
      report,
    )
  return found


def _draw_page(directory: pathlib.Path) -> None:
  """What the defences drew, on one page."""
  drawn = {
    "pruning": "pruning/figures/pruning.png",
    "fine-pruning, by activation": "fine_pruning/figures/rounds.png",
    "fine-pruning, by value": "fine_pruning-value/figures/rounds.png",
    "STRIP": "strip/figures/entropies.png",
  }
  (directory / "figures").mkdir(exist_ok=True)
  plots.page(
    directory / "figures" / "page.png",
    {title: directory / "defenses" / path for title, path in drawn.items()},
  )


def _shown(out: dict[str, Any]) -> dict[str, Any]:
  """The results with the scores of the one table alone."""
  chosen = {
    f"{name}/{score}"
    for name, stage in _STAGES.items()
    for score in stage.shown
  }
  measured = {
    name: value
    for name, value in out["measured"].items()
    if "/" not in name or name in chosen
  }
  return out | {
    "defense": "csaw",
    "run": {"name": out["network"]},
    "measured": measured,
  }


def main() -> None:
  """Runs the experiment from the command line."""

  def start(**chosen):
    run(Config(**chosen), say, show=True)

  serve(dataclasses.fields(Config), start)


if __name__ == "__main__":
  main()
