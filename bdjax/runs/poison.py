"""Makes the poisoned data set of an attack, and exports it."""

import dataclasses
import difflib
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bdjax import provenance, sharding
from bdjax.attacks import ATTACKS, AttackMethod, poison_dataset
from bdjax.attacks.base import Attack, PreparationContext, TriggerVariables
from bdjax.attacks.poisoned_set import stamp_images
from bdjax.attacks.poisoning import choose_targets
from bdjax.attacks.settings import AttackSettings
from bdjax.batch import COVER, POISONED
from bdjax.data import NAMES, Dataset, Splits
from bdjax.data.export import ExportedSets, check_output, export
from bdjax.errors import UserError
from bdjax.runs.config import RunConfig, identity
from bdjax.runs.load import load_run
from bdjax.runs.resolve import resolve
from bdjax.runs.run import load_data
from bdjax.runs.setup import Keys, check_test_labels, make_attack, make_keys
from bdjax.settings import check, setting

# Settings of attacks that say how a network is trained or scored.
LEFT_OUT = ("poison", "backdoor_weight", "eval_draws")
_DATA = ("dataset", "defender_fraction", "seed", "trigger_sha256")


@dataclasses.dataclass(frozen=True)
class PoisonConfig:
  """Settings of an export: every one but those of the attack."""

  attack: str = setting(
    "badnets",
    "Attack that can poison a data set; each has flags of its own.",
    group="attack",
  )
  output: str | None = setting(
    None, "New folder for the poisoned data set.", group="output"
  )
  png: bool = setting(
    True, "Write the images as PNG files too, with an index.", group="output"
  )
  overwrite: bool = setting(
    False, "Replace an earlier export in output.", group="output"
  )
  dataset: str = setting(
    "digits",
    f"Data set: {', '.join(NAMES)}, or the path of an .npz file.",
    group="data",
  )
  data_source: str = setting(
    "auto", "Source of the bytes, as in training.", group="data"
  )
  data_dir: str | None = setting(
    None, "Directory of data, as in training.", group="data"
  )
  defender_fraction: float = setting(
    0.0,
    "Share of the training images kept out for the defender, exported clean.",
    low=0,
    high=0.99,
    group="data",
  )
  seed: int = setting(
    0,
    "Random seed of the defender's share, of the images poisoned and of the "
    "triggers.",
    low=0,
    high=2**31 - 1,
    group="data",
  )
  clean_run: str | None = setting(
    None,
    "Directory of a clean run, for attacks that are made from one.",
    group="data",
  )


def find_attack(name: str) -> AttackMethod:
  """Return an attack that can poison a data set.

  Args:
    name: of the attack.

  Raises:
    UserError: there is no such attack, or it only poisons batches.
  """
  names = [n for n, method in ATTACKS.items() if "dataset" in method.modes]
  if name in names:
    return ATTACKS[name]
  if name in ATTACKS:
    raise UserError(
      f"attack must be one of {', '.join(names)} (got {name}, which poisons "
      "batches in training: its triggers are trained with the network)"
    )
  near = difflib.get_close_matches(name, names, 1)
  hint = f"; did you mean {near[0]}?" if near else ""
  raise UserError(
    f"attack must be one of {', '.join(names)} (got {name}{hint})"
  )


def export_poisoned(
  config: PoisonConfig, settings: AttackSettings | None = None
) -> dict[str, Any]:
  """Poison a data set and write it into a folder.

  The training set is that of a run of the attack with the same settings, image
  by image. Every test image that may be triggered is, once, towards a target
  drawn from those that it may have.

  Args:
    config: of the export.
    settings: of the attack; None for its defaults.

  Returns:
    What `about.json` says: settings, and the realised rates.

  Raises:
    UserError: something the user can put right; then nothing is written.
  """
  check(config)
  method = find_attack(config.attack)
  if config.output is None:
    raise UserError("output must be given: a new folder")
  check_output(config.output, config.overwrite)
  settings = dataclasses.replace(
    settings or method.settings(), poison="dataset"
  )
  run_config = resolve(
    RunConfig(
      config.attack,
      settings,
      dataset=config.dataset,
      data_source=config.data_source,
      data_dir=config.data_dir,
      defender_fraction=config.defender_fraction,
      seed=config.seed,
    )
  )
  splits = load_data(run_config)
  sets, rates = poisoned_sets(run_config, splits, config.clean_run)
  stored = identity(run_config)
  own = [n for n in vars(run_config.settings) if n not in LEFT_OUT]
  about = {
    "attack": config.attack,
    "citation": method.citation,
    "config": {name: stored[name] for name in (*own, *_DATA)},
    "rates": rates,
    "class_names": list(splits.info.class_names),
    **provenance.environment(splits.info),
    "git_commit": provenance.git_commit(),
  }
  export(
    pathlib.Path(config.output),
    sets,
    splits.info.class_names,
    about,
    png=config.png,
    overwrite=config.overwrite,
  )
  return about


def poisoned_sets(
  config: RunConfig, splits: Splits, clean_run: str | None = None
) -> tuple[ExportedSets, dict[str, Any]]:
  """Poison the training set, and trigger the test images.

  Args:
    config: resolved, of an attack that poisons data sets.
    splits: its data.
    clean_run: directory of a clean run, for attacks that are made from one.

  Returns:
    The sets, and the realised rates, JSON-ready.

  Raises:
    UserError: the settings do not fit the data.
  """
  attack = make_attack(
    config, splits.test.images.shape[1:], splits.info.num_classes
  )
  check_test_labels(attack, splits.test.labels)
  keys = make_keys(config.seed)
  variables = _variables(config, attack, keys, splits, clean_run)
  train = poison_dataset(
    attack,
    variables,
    keys.poison,
    splits.train.images,
    splits.train.labels,
    config.settings.poison_rate,
    getattr(config.settings, "class_rate", None),
  )
  triggered, rows = _trigger_test(attack, variables, keys, splits.test)
  sets = ExportedSets(
    Dataset(train.images, train.labels),
    train.roles,
    train.targets,
    splits.test,
    triggered,
    rows,
    splits.defender,
  )
  return sets, _rates(sets, attack, splits.train.labels)


def _variables(config, attack, keys: Keys, splits, clean_run):
  """Return the attack's variables, as a run with this seed has them."""
  # The half of the key that a run draws them with.
  variables = attack.init(jax.random.split(keys.init)[1])
  if attack.prepare is None:
    return variables
  clean = None
  if config.method.needs_clean_network:
    if clean_run is None:
      raise UserError(f"clean_run must be given for {config.attack}")
    run = load_run(clean_run)
    if run.attack is not None:
      raise UserError(f"clean_run must be clean ({clean_run} is not)")
    clean = run.defender.model, run.defender.weights
  mesh = sharding.make_mesh()
  images, labels = sharding.replicate(mesh, tuple(splits.train))
  context = PreparationContext(images, labels, mesh, clean)
  return attack.prepare(keys.prepare, variables, context)


def _trigger_test(
  attack: Attack, variables: TriggerVariables, keys: Keys, test: Dataset
) -> tuple[Dataset, np.ndarray]:
  """Trigger test images; return them with their targets, and their rows."""
  target_key, trigger_key = jax.random.split(keys.evaluate)
  eligible = attack.eligible(jnp.asarray(test.labels))
  index, counts = map(np.asarray, choose_targets(target_key, eligible))
  rows = np.flatnonzero(counts).astype(np.int32)
  images = stamp_images(
    attack.test_apply, variables, trigger_key, test.images[rows], index[rows]
  )
  targets = np.asarray(attack.targets)[index[rows]]
  return Dataset(images, targets.astype(np.int32)), rows


def _rates(sets: ExportedSets, attack, true_labels) -> dict[str, Any]:
  """Count what was poisoned, overall and of the images of the targets."""
  poisoned = sets.roles == POISONED
  targets = np.asarray(attack.targets)
  of_target = np.isin(sets.train.labels, targets)
  return {
    "training_images": len(poisoned),
    "poisoned": int(poisoned.sum()),
    "poisoned_share": float(poisoned.mean()),
    "poisoned_share_of_target_classes": float(poisoned[of_target].mean()),
    "labels_changed": int((sets.train.labels != true_labels).sum()),
    "covers": int((sets.roles == COVER).sum()),
    "test_images": len(sets.test.labels),
    "triggered_test_images": len(sets.test_index),
    "target_labels": targets.tolist(),
  }
