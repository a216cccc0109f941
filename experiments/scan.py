"""Does a network look backdoored? Neural Cleanse over very many classes.

python -m experiments.scan --weights=sunglasses_bd_weights.h5 --images=faces
python -m experiments.scan --run=runs/badnets-mnist

The classes share the steps as K-Arm does (Shen et al. 2021), a random sample of
them is searched to the end, and the smallest masks are compared with that. A
few clean images a class will do, a handful in all gives a first answer. What
no mask on the image can bring about, a scan cannot find.
"""

import dataclasses
import pathlib
import shutil
from typing import Any

import jax
import numpy as np

from bdjax import plots
from bdjax.attacks.triggers import Trigger, stamp
from bdjax.defenses import k_arm, neural_cleanse
from experiments import defending
from experiments.common import profiling, results
from experiments.common.cli import say, serve
from experiments.common.rundir import once, open_run
from experiments.common.runner import Report, quiet
from experiments.defending import config as defending_config
from experiments.defending import flag
from experiments.defending.delivered import by_white
from experiments.scanning import search as scanning
from experiments.scanning import verdicts
from experiments.scanning.case import Case, open_case
from experiments.scanning.wording import print_scan, words


@dataclasses.dataclass(frozen=True)
class Config:
  """Flags of a scan."""

  weights: str | None = flag(
    None, "A network: .h5, .safetensors, .pt or .pth.", free=True
  )
  images: str | None = flag(
    None,
    "With --weights: clean images, a folder of PNG and JPEG, one of them, a "
    ".npz (images, labels) or a .h5 set of CSAW-HackML-2020.",
    free=True,
  )
  run: str | None = flag(
    None, "Instead: a run, runs/NAME, with its defender's images.", free=True
  )
  dataset: str | None = flag(
    None, "With --run: where its .npz file is now.", free=True
  )
  data_source: str = flag("auto", "With --run, as in training.", free=True)
  data_dir: str | None = flag(None, "With --run, as in training.", free=True)
  model: str | None = flag(
    None, "With --weights (default: what the file's layers tell)."
  )
  pixels: int | None = flag(
    None,
    "What white was in the network's training, 1 or 255 (default: what gives "
    "the better accuracy on labelled images, else 1).",
  )
  mean: str | None = flag(
    None, "Subtracted from the channels, with commas (default: 0)."
  )
  std: str | None = flag(
    None, "The channels are divided by it, with commas (default: 1)."
  )

  augmentations: int = flag(
    16, "Forms of each image, while there are fewer than 1000.", low=1
  )
  steps: int = flag(200, "Of a class's search, at most.", low=1)
  updates: int = flag(2, "Mini-batches a step.", low=1)
  batch_size: int = flag(8, "Images an update.", low=1)
  asr_threshold: float = flag(
    0.99, "Success rate that a mask must reach.", above=0, high=1
  )
  patience: int = flag(3, "Steps before the cost moves.", low=1)
  early_stop_patience: int = flag(10, "Steps without a smaller mask.", low=1)

  round_steps: int = flag(5, "Steps a class has in a round.", low=1)
  warmup: int = flag(2, "Rounds that every class has.", low=1)
  epsilon: float = flag(0.3, "Chance of a random class.", low=0, high=1)
  beta: float = flag(1e4, "Weight of a small mask, pixels squared.", low=0)
  settled: int = flag(
    24, "Ends when so many of the smallest masks are done.", low=1
  )
  rounds: int = flag(2000, "After warm-up and sample, at most.", low=0)
  reference: int = flag(
    128, "Random classes that are searched to the end, to compare.", low=4
  )
  class_batch: int | None = flag(
    None,
    "Classes a round (default: one a device on CPU, else 32 or what fits).",
    low=1,
  )

  threshold: float = flag(2.0, "Anomaly index of a suspect.", above=0)
  seed: int = flag(0, "Of all draws.", low=0)
  output: str | None = flag(
    None,
    "Where results go (default: runs/scan-WEIGHTS, or defenses/scan in the "
    "run).",
    free=True,
  )
  overwrite: bool = flag(
    False, "Starts over where there are results.", free=True
  )
  profile: str | None = flag(
    None,
    "Directory for a trace of all of it, for Perfetto or TensorBoard.",
    free=True,
  )
  checkpoint_seconds: float = flag(
    60.0, "Longest time between two checkpoints.", low=0, free=True
  )


def run(
  config: Config, report: Report = quiet, *, show: bool = False
) -> dict[str, Any]:
  """Scans a network; importable.

  Args:
    config: the flags.
    report: takes lines of progress.
    show: prints a table.

  Returns:
    What stands in `results.json`.

  Raises:
    UserError: something the user can put right.
  """
  defending.check_ranges(config)
  profiling.check(config.profile)
  case = open_case(config, report)
  place = case.place
  if config.output:
    place = pathlib.Path(config.output).expanduser()
  # Which arms are drawn depends on how many a round takes.
  width = scanning.width(config, case.info.num_classes, case.images.shape[1:])
  config = dataclasses.replace(config, class_batch=width)
  identity = defending_config.identity(config) | case.network
  with open_run(
    place, identity, overwrite=config.overwrite, elsewhere="--output"
  ) as directory:
    out = once(
      directory,
      report,
      lambda: _traced(config, case, directory, report) | {"config": identity},
    )
    # What the searches needed to go on takes most of a gigabyte.
    shutil.rmtree(directory / "checkpoints", ignore_errors=True)
  if show:
    print_scan(out, directory)
  return out


def _traced(config, case, directory, report) -> dict[str, Any]:
  with profiling.traced(config.profile):
    return _scan(config, case, directory, report)


def _scan(
  config: Config, case: Case, directory: pathlib.Path, report: Report
) -> dict[str, Any]:
  """The search, the verdicts and the figures: what `results.json` says."""
  pictures = scanning.prepare(case.images, config.augmentations, config.seed)
  num = case.info.num_classes
  keys = jax.random.split(jax.random.key(config.seed), 3)
  reference = k_arm.draw_reference(keys[0], num, config.reference)
  bandit = scanning.settings(k_arm.Bandit, config)
  scan, seconds = scanning.search(
    config, case, pictures.search, reference, keys[1:], directory, report
  )
  found = neural_cleanse.finish(scan.state)
  ended = np.flatnonzero(scan.state.frozen & found.reached)
  triggers = Trigger(found.masks, found.patterns)
  held_out = scanning.try_held_out(case, pictures, triggers, ended)
  judged = verdicts.judge(
    found,
    scan.state.frozen,
    reference,
    held_out,
    case.info.class_names,
    config.threshold,
  )
  space = defending.Space(directory, report, keys[1])
  _keep(case, found, scan, reference, judged, space)
  steps = int(found.steps.sum())
  whole = float(found.steps[reference].mean()) * num
  return {
    "experiment": "scan",
    "network": case.network,
    "accuracy_by_white": by_white(case.accuracy),
    "measured": {
      "backdoored": judged.labels("backdoored"),
      "suspect": judged.labels("suspect"),
      "steps": steps,
      "steps_of_all": whole,
      "steps_saved": 0.0 if reference.all() else max(0.0, 1 - steps / whole),
    },
    "words": words(
      judged,
      num,
      int(reference.sum()),
      len(pictures.rows),
      config.threshold,
      case.accuracy,
    ),
    "details": {
      "classes": judged.rows,
      "threshold": config.threshold,
      "log_threshold": judged.threshold,
      "reference": np.flatnonzero(reference).tolist(),
      "held_out": pictures.rows.tolist(),
      "search_images": len(pictures.search),
      "rounds": int(scan.number),
      "rounds_of_bandit": int(scan.free),
      "bandit": bandit._asdict(),
    },
    **results.surroundings(case.info),
    "git_commit": results.git_commit(),
    "seeds": [config.seed],
    "seconds": {"search": seconds},
    "peak_memory_bytes": results.peak_memory_bytes(),
  }


def _keep(case, found, scan, reference, judged, space):
  """Triggers of the settled classes, and the figures."""
  ended = scan.state.frozen & found.reached
  rows = [r["class"] for r in judged.rows if ended[r["class"]]]
  space.save_arrays(
    "triggers",
    classes=np.array(rows, np.int32),
    masks=found.masks[rows],
    patterns=found.patterns[rows],
    norms=found.norms[rows],
  )
  flagged = judged.labels("backdoored")
  smallest = [r["class"] for r in judged.rows][: verdicts.SHOWN]
  if not smallest:
    return
  trigger = Trigger(found.masks[smallest], found.patterns[smallest])
  sample = case.images[:1].astype(np.float32) / np.float32(255)
  plots.reversed_triggers(
    space.figure("triggers"),
    *trigger,
    np.asarray(stamp(trigger, sample)),
    [case.info.class_names[k] for k in smallest],
    [place for place, k in enumerate(smallest) if k in flagged],
  )
  plots.scanned_norms(
    space.figure("norms"),
    np.where(found.reached, found.norms, np.inf),
    {
      "reference sample": reference & ended,
      "chosen by the bandit": ~reference & ended,
      "left unfinished": ~ended,
    },
    flagged,
  )


def main():
  """Runs a scan from the command line."""
  serve(
    dataclasses.fields(Config),
    lambda **chosen: run(Config(**chosen), say, show=True),
  )


if __name__ == "__main__":
  main()
