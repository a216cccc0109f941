"""One run with one seed: its data, its training, what it leaves behind."""

import pathlib
import time
from collections.abc import Callable
from typing import Any

from bdjax import data, models
from bdjax.data import Splits
from experiments.common import figures, results, scores
from experiments.common.config import Config, identity
from experiments.common.program import Program, make_keys
from experiments.common.train import train

Report = Callable[[str], None]


def load(config: Config, report: Report) -> Splits:
  """The data of a run; which images are the defender's, its seed says."""
  return data.load(
    config.dataset,
    source=config.data_source,
    data_dir=config.data_dir,
    defender_fraction=config.defender_fraction,
    seed=config.seed,
    report=report,
  )


def train_member(
  program: Program,
  splits: Splits,
  config: Config,
  directory: pathlib.Path,
  report: Report,
  received: list[int] | None = None,
) -> dict[str, Any]:
  """Trains, evaluates and draws.

  Args:
    program: of the run.
    splits: from `load`.
    config: resolved, of one seed.
    directory: held by `open_run`.
    report: takes one line.
    received: as in `train`.

  Returns:
    What goes into `results.json`.
  """
  commit = results.git_commit()  # now: a checkout may change while it trains
  trained = train(
    program,
    splits,
    config.seed,
    directory,
    commit,
    report,
    received=received,
  )
  keys = make_keys(config.seed)
  with program.lock:  # matplotlib draws in one thread at a time
    begin = time.perf_counter()
    found = scores.evaluate(program, trained.carry, splits, keys.evaluate)
    seconds = trained.seconds | {"evaluate": time.perf_counter() - begin}
    figures.draw(program, trained, found, splits, keys.figures, directory)
  speed = program.total_steps * config.batch_size / seconds["train"]
  flops = results.flops_per_image(program.model, splits.test.images.shape[1:])
  return {
    "config": identity(config),
    "measured": results.as_json(found.measured),
    "reported": results.reported(config),
    "details": found.details,
    **results.surroundings(splits.info),
    "git_commit": {"training": trained.commits, "evaluation": commit},
    "seeds": [config.seed],
    "steps": program.total_steps,
    "parameters": models.count_parameters(program.model),
    "seconds": seconds,
    "images_per_second": speed,
    "forward_flops_per_image": flops,
    "share_of_bfloat16_peak": results.share_of_peak(flops, speed),
    "peak_memory_bytes": results.peak_memory_bytes(),
  }
