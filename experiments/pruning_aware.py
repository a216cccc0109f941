"""The attack that pruning alone cannot stop (Liu et al. 2018, section 3.2).

python -m experiments.pruning_aware --run=runs/badnets-mnist \
  --clean_run=runs/clean-mnist

Trains the attack of --run again, from the clean network, into the channels
that clean images use; leaves the network as a run, runs/NAME-pruning_aware,
and sets pruning and fine-pruning on both.
"""

import dataclasses
import pathlib
from typing import Any

from bdjax.errors import UserError
from experiments import defending, fine_pruning
from experiments import pruning as pruning_experiment
from experiments.common import config as attack_config
from experiments.common import profiling, results
from experiments.common.cli import say, serve
from experiments.common.rundir import open_run, write_json
from experiments.common.runner import Report, quiet
from experiments.defending import flag
from experiments.defending.around_pruning import save, train_around
from experiments.defending.config import check, identity
from experiments.defending.exam import Exam
from experiments.defending.subject import load
from experiments.defending.table import print_table

SHARED = (
  *("dataset", "model", "width", "stem", "seed"),
  *("defender_fraction", "data_sha256"),
)


@dataclasses.dataclass(frozen=True)
class Config(defending.Config):
  """Flags of the pruning-aware attack."""

  clean_run: str | None = flag(
    None, "The same model trained clean: a run, or a group as --run is."
  )
  layer: str | None = flag(
    None, "Whose dormant channels are left out (default: the last)."
  )
  drop: float = flag(
    0.005,
    "Accuracy on training images that leaving them out may cost.",
    above=0,
    below=1,
  )
  epochs: int | None = flag(
    None, "Of the backdoor's training (default: as many as --run had).", low=1
  )
  margin: float = flag(
    0.1,
    "By how much more than needed the biases of the rest are lowered.",
    low=0,
  )


def run(
  config: Config, report: Report = quiet, *, show: bool = False
) -> dict[str, Any]:
  """Attacks, and sets both defences on the old network and the new one.

  Returns:
    What stands in `results.json` of the new run.

  Raises:
    UserError: something the user can put right.
  """
  check(config)
  profiling.check(config.profile)
  if not config.run or not config.clean_run:
    raise UserError(
      "take --run=runs/NAME of an attack and --clean_run=runs/NAME of the same "
      "model trained clean"
    )
  places = defending.members(config)
  beside = defending.members(dataclasses.replace(config, run=config.clean_run))
  root = pathlib.Path(config.run).expanduser()
  output = root.with_name(f"{root.name}-pruning_aware")
  output = pathlib.Path(config.output).expanduser() if config.output else output
  if len(places) != len(beside):
    raise UserError(
      f"{config.run} has {len(places)} members and {config.clean_run} "
      f"{len(beside)}: take groups of the same seeds"
    )
  found = []
  for place, clean in zip(places, beside, strict=True):
    alone = place == root
    directory = output if alone else output / place.name
    found.append(_attack(config, place, clean, directory, report))
  if len(found) == 1 and places == [root]:
    out = found[0]
  else:
    out = defending.combine(found)
    out["run"] = {**out["run"], "name": output.name}
    write_json(output / "results.json", out)
  if show:
    print_table(out, output)
  return out


def _attack(config, place, clean, directory, report) -> dict[str, Any]:
  subject = load(config, place, report)
  start = load(dataclasses.replace(config, run=str(clean)), clean, report)
  if subject.attack is None:
    raise UserError(f"{place} is a clean run: take --run of an attack")
  for name in SHARED:
    one, two = getattr(subject.config, name), getattr(start.config, name)
    if one != two:
      raise UserError(
        f"{place} and {clean} do not fit: {name} is {one} and {two}"
      )
  # As the run's own, so that the defences take the new run for one.
  stored = attack_config.identity(subject.config)
  about = identity(config) | {
    "of": subject.identity(),
    "clean": start.identity(),
  }
  with open_run(
    directory,
    stored | {"pruning_aware": about},
    overwrite=config.overwrite,
    elsewhere="--output",
  ):
    trained = train_around(config, subject, start, directory, report)
    save(directory, subject, trained)
    exam = Exam(
      subject._replace(generator=trained.generator),
      defending.root_key(config.seed, subject.config.seed),
      config.eval_images,
    )
    scores = exam.scores(subject.defender.model, trained.weights)
    out = {
      "defense": "pruning_aware",
      "config": about,
      "run": {"name": directory.name, "experiment": subject.config.experiment},
      "measured": results.as_json(scores)
      | {"dormant_channels": trained.channels}
      | _defended("plain", config, place, directory, report)
      | _defended("aware", config, directory, directory, report),
      "reported": {},
      "details": {},
      **results.surroundings(subject.splits.info),
      "git_commit": results.git_commit(),
      "seeds": [subject.config.seed],
      "seconds": {"train": trained.seconds},
    }
    write_json(directory / "results.json", out)
  return out


def _defended(name, config, place, directory, report) -> dict[str, Any]:
  """ASR and clean accuracy after pruning, and after fine-pruning."""
  out = {}
  for defense, mark, text in (
    (pruning_experiment.DEFENSE, "at_0.04", "pruned"),
    (fine_pruning.DEFENSE, "repaired", "fine_pruned"),
  ):
    found = defending.run(
      defense,
      defense.config(
        run=str(place),
        layer=config.layer,
        dataset=config.dataset,
        data_source=config.data_source,
        data_dir=config.data_dir,
        eval_images=config.eval_images,
        seed=config.seed,
        output=str(directory / "defenses" / f"{defense.name}-{name}"),
      ),
      report,
    )
    for score in ("clean_accuracy", "attack_success_rate"):
      value = found["measured"][f"{score}_{mark}"]
      out[f"{score}_{name}_{text}"] = value
  return out


if __name__ == "__main__":
  serve(
    dataclasses.fields(Config),
    lambda **chosen: run(Config(**chosen), say, show=True),
  )
