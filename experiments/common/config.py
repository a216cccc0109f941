"""The configuration of a run: every flag, its default and its meaning."""

import dataclasses
import pathlib
from typing import Any

from bdjax.data import NAMES
from bdjax.models import MODELS

GENERATED = ("ban", "cban")  # by a network
ATTACKS = ("badnets", "random_backdoor", *GENERATED)
# Flags that take several values, and what a member has one of.
SWEEPS = {
  "poison_rates": "poison_rate",
  "trigger_sizes": "trigger_size",
  "target_sweep": "target_labels",
}


def flag(default: Any, help_text: str, **meta: Any) -> Any:
  """A field that is a flag.

  Args:
    default: its value.
    help_text: what it means.
    **meta: `free=True` where the outcome does not depend on it; `only`, the
      experiments that have it; `low` and `high`, the ends of its range, both
      allowed; `above`, a low end that is not; `below`, a high one.
  """
  return dataclasses.field(
    default=default, metadata={"help": help_text, **meta}
  )


_SWEEP = {"only": ATTACKS, "free": True}


@dataclasses.dataclass(frozen=True)
class Config:
  """One field a flag; None is filled in by `defaults.resolve`."""

  experiment: str = "clean"
  # Of the user's own file, filled in once it is read: its path says little.
  data_sha256: str | None = None

  # Data.
  dataset: str = flag(
    "digits", f"{', '.join(NAMES)}, or the path of an .npz file."
  )
  data_source: str = flag(
    "auto",
    "Where the bytes come from: auto, builtin, tfds, npm, idx or file.",
    free=True,
  )
  data_dir: str | None = flag(
    None,
    "TFDS directory, or a directory of idx files (default: TFDS's own).",
    free=True,
  )
  defender_fraction: float = flag(
    0.05, "Share of the training images kept out for the defender."
  )

  # Model.
  model: str | None = flag(
    None,
    f"{', '.join(MODELS)} (default: digits and MNIST cnn, CIFAR-10 airbench, "
    "else resnet18).",
  )
  width: int = flag(64, "Filters of the first stage; 64 is the literature's.")
  stem: str = flag("cifar", "Of the ResNets: cifar (3x3) or imagenet (7x7).")
  precision: str = flag(
    "auto", "auto (bfloat16 on accelerators), float32 or bfloat16."
  )

  # Training.
  epochs: int | None = flag(
    None,
    "Passes over the data (default: digits 100, airbench 6, else 20).",
  )
  batch_size: int | None = flag(
    None,
    "Images a step, over all devices (default: digits 32, airbench 500, else "
    "128).",
  )
  learning_rate: float | None = flag(
    None,
    "Peak learning rate (default: digits and MNIST 0.05, airbench 0.24, else "
    "0.1).",
  )
  # None is SGD, which runs have that are older than the flag.
  optimizer: str | None = flag(
    None, "sgd or muon (default: muon for airbench, else sgd)."
  )
  schedule: str | None = flag(
    None,
    "onecycle, linear, cosine or constant (default: linear for airbench, else "
    "onecycle).",
  )
  momentum: float | None = flag(
    None, "Nesterov momentum (default: 0.6 with muon, else 0.9)."
  )
  weight_decay: float | None = flag(
    None,
    "Of kernels, coupled, as in PyTorch's SGD; with muon of the head (default: "
    "digits and MNIST 1e-4, airbench 2.4e-3, else 5e-4).",
  )
  label_smoothing: float | None = flag(
    None, "Share of the label spread over all (default: airbench 0.2, else 0)."
  )
  augment: str | None = flag(
    None,
    "none, crop (shifts by up to 2 pixels), crop_flip (by up to 4, and mirrors "
    "half of them) or crop_alternate (by up to 2, and mirrors in every other "
    "epoch; default: MNIST crop, CIFAR-10 crop_flip, with airbench "
    "crop_alternate, else none).",
  )
  seed: int = flag(0, "Of everything random: split, weights, order, triggers.")
  seeds: int = flag(
    1, "Repeats the run with this many consecutive seeds.", free=True
  )
  at_once: int | None = flag(
    None,
    "Members of a group (seeds, poison rates, ...) that train at a time "
    "(default: one; two on a CPU that is the only device; with --vmap as many "
    "as fit the memory).",
    free=True,
  )
  vmap: bool = flag(
    False,
    "Trains the members of a group as one program: for accelerators, where "
    "it is not measured yet. Equals runs alone up to rounding.",
    free=True,
  )

  # Attack.
  target_labels: str | None = flag(
    None,
    "all, or labels with commas (default: 0; all for cban).",
    only=ATTACKS,
  )
  all_to_all: bool = flag(
    False,
    "Every label a target, of the images of the label before it.",
    only=("badnets",),
  )
  locations: str | None = flag(
    None,
    "Where triggers lie: anywhere, grid (one region a target), corner (the "
    "bottom right one), or a set of places TOP:LEFT with commas, the sets of "
    "several targets with semicolons between them (default: corner for "
    "badnets; grid for several targets of random_backdoor and ban; else "
    "anywhere).",
    only=ATTACKS,
  )
  trigger_size: int | None = flag(
    None,
    "Side of the trigger, in pixels (default: digits and badnets 3, else 5).",
    only=ATTACKS,
  )
  poison_rate: float | None = flag(
    None,
    "Chance of an image to be triggered in a step (default: several targets "
    "0.3; one target 0.1, but random_backdoor on MNIST 0.15, else 0.2).",
    only=ATTACKS,
  )
  poison_rates: str | None = flag(
    None, "One run for each of these rates, with commas.", **_SWEEP
  )
  trigger_sizes: str | None = flag(
    None, "One run for each of these sizes, with commas.", **_SWEEP
  )
  target_sweep: str | None = flag(
    None,
    "One run for each of these labels as the only target, with commas.",
    **_SWEEP,
  )
  backdoor_weight: float | None = flag(
    None, "Weight of the poisoned images' loss (default: 1).", only=ATTACKS
  )
  noise_dim: int | None = flag(
    None, "Length of the generator's noise (default: 100).", only=GENERATED
  )
  generator_width: int | None = flag(
    None, "Units of the generator's embedding (default: 64).", only=GENERATED
  )
  generator_learning_rate: float | None = flag(
    None, "Of the generator's Adam (default: 1e-3).", only=GENERATED
  )
  diversity: float | None = flag(
    None,
    "How much the triggers of a label shall differ from draw to draw: 1 as "
    "much as random pixels, 0 for the paper's loss alone, whose triggers "
    "become one and the same (default: 0.5).",
    only=GENERATED,
  )

  # Evaluation.
  eval_draws: int | None = flag(
    None,
    "Fresh triggers a test image and target (default: badnets 1, else 5).",
    only=ATTACKS,
  )
  test_time_augmentation: bool = flag(
    False, "Averages the logits of six views of every test image."
  )
  benchmark: str | None = flag(
    None,
    "Accuracy of the same model trained clean: auto (a finished run of "
    "experiments.clean with the same flags, else trains one now), reuse "
    "(never trains) or none (default: auto).",
    only=ATTACKS,
    free=True,
  )

  # The run.
  runs_dir: str = flag("runs", "Where runs are kept.", free=True)
  run_name: str | None = flag(
    None,
    "Directory of this run (default: EXPERIMENT-DATASET, then -multi for "
    "several targets of random_backdoor and ban, -rates, -sizes or -targets "
    "for several of these, -seeds for several seeds).",
    free=True,
  )
  overwrite: bool = flag(
    False, "Starts over where a run of this name exists.", free=True
  )
  checkpoint_seconds: float = flag(
    60.0, "Longest training time between two checkpoints.", free=True
  )
  profile: str | None = flag(
    None,
    "Directory for a trace of the second to the fourth call of the training, "
    "for Perfetto or TensorBoard.",
    free=True,
  )
  dry_run: bool = flag(
    False, "Prints what would be done, and does nothing.", free=True
  )

  @property
  def directory(self) -> pathlib.Path:
    """Where the run leaves its files."""
    return pathlib.Path(self.runs_dir).expanduser() / self.run_name


def fields_of(experiment: str) -> list[dataclasses.Field]:
  """The fields that are flags of an experiment."""
  out = []
  for field in dataclasses.fields(Config):
    if "help" not in field.metadata:
      continue
    if experiment in field.metadata.get("only", (experiment,)):
      out.append(field)
  return out


def identity(config: Config) -> dict[str, Any]:
  """What a run's outcome depends on: all its flags but places and manners.

  Of the number of seeds only whether there are several, and of a sweep only
  what is swept: a group of three can become one of five.
  """
  fields = {
    f.name: getattr(config, f.name)
    for f in fields_of(config.experiment)
    if not f.metadata.get("free")
  }
  return fields | {
    "experiment": config.experiment,
    "data_sha256": config.data_sha256,
    "group": config.seeds > 1,
    "swept": [v for k, v in SWEEPS.items() if getattr(config, k)] or None,
  }


def differences(stored: dict[str, Any], wanted: dict[str, Any]) -> list[str]:
  """Where two identities differ, `NAME A there, B here` each.

  A flag that one of them does not know is None there, and off if it can be.
  """

  def value(of, key):
    return None if of.get(key) is False else of.get(key)

  return [
    f"{key} {stored.get(key)} there, {wanted.get(key)} here"
    for key in sorted(stored.keys() | wanted.keys())
    if value(stored, key) != value(wanted, key)
  ]
