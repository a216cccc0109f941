"""Fine-pruning by value, resumable after each round."""

import logging
import pathlib
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator

import jax
import jax.numpy as jnp
import numpy as np

from bdjax import batching
from bdjax.attacks.patches import Trigger
from bdjax.checkpoints import Checkpoints
from bdjax.defenses.base import (
  Defender,
  Repair,
  check_finite,
  checkpoint_path,
)
from bdjax.defenses.fine_pruning.rounds import (
  Round,
  SuspectedTrigger,
  compile_rounds,
)
from bdjax.defenses.fine_pruning.settings import (
  FinePruningSettings,
  compile_tuning_of,
)
from bdjax.errors import UserError
from bdjax.models import Weights
from bdjax.training import TrainState

logger = logging.getLogger(__name__)

KEPT_ROUNDS = 200  # all of them, at the smallest step
_UNREADABLE = (
  OSError,
  ValueError,
  EOFError,
  KeyError,
  zipfile.BadZipFile,
  zlib.error,
)


def by_value(
  defender: Defender,
  settings: FinePruningSettings,
  directory: pathlib.Path | None,
) -> tuple[Repair, ...]:
  """Prune weights and tune, round after round.

  Args:
    defender: the network and clean images.
    settings: from `fill_defaults`.
    directory: see `resumable_rounds`.

  Returns:
    `before`, one network for each round, and `repaired`.

  Raises:
    UserError: `proxy_triggers` does not fit, or tuning diverged.
  """
  rounds = compile_rounds(
    defender.model,
    defender.batch_size(),
    defender.mesh,
    compile_tuning_of(defender.model, defender, settings),
    step=settings.step,
    drop=settings.drop,
  )
  suspect = None
  if settings.proxy_triggers is not None:
    suspect = read_suspect(settings.proxy_triggers, defender)
  repaired = Repair("before", defender.model, defender.weights, saved=False)
  networks = [repaired]
  for result in resumable_rounds(rounds, defender, suspect, directory):
    details = {
      "pruned_fraction": result.pruned,
      "defender_accuracy_pruned": result.pruned_accuracy,
      "defender_accuracy": result.accuracy,
      "proxy": result.proxy,
      "accepted": result.accepted,
    }
    name = f"{result.percent:.0%}"
    weights = result.weights
    network = Repair(name, defender.model, weights, details, False, step=True)
    networks.append(network)
    if result.accepted:
      repaired = network
  final = repaired._replace(name="repaired", saved=True, step=False)
  return (*networks, final)


def read_suspect(path: str, defender: Defender) -> SuspectedTrigger:
  """Read the trigger of the class that Neural Cleanse flagged first.

  Args:
    path: of an `.npz` file with masks [K,H,W,1], patterns [K,H,W,C] and
      flagged int [F], the most suspicious first.
    defender: whose classes and images it must fit.

  Raises:
    UserError: there is no such file, it does not fit, or flags no class.
  """
  try:
    with np.load(path) as arrays:
      flagged = arrays["flagged"]
      masks, patterns = arrays["masks"], arrays["patterns"]
  except _UNREADABLE as error:
    raise UserError(
      f"proxy_triggers must be the triggers.npz of neural_cleanse ({path} is "
      "not): run that first"
    ) from error
  if not len(flagged):
    raise UserError(f"proxy_triggers must flag a class ({path} flags none)")
  height, width, channels = defender.image_shape
  num_classes = defender.num_classes
  if (
    masks.shape != (num_classes, height, width, 1)
    or patterns.shape != (num_classes, height, width, channels)
    or not 0 <= flagged[0] < num_classes
  ):
    raise UserError(
      f"proxy_triggers must be of this network's classes and images ({path} "
      "is of others)"
    )
  label = int(flagged[0])
  trigger = Trigger(jnp.asarray(masks[label]), jnp.asarray(patterns[label]))
  return SuspectedTrigger(trigger, label)


def resumable_rounds(
  rounds: Callable,
  defender: Defender,
  suspect: SuspectedTrigger | None,
  directory: pathlib.Path | None,
) -> Iterator[Round]:
  """Yield the rounds that earlier calls kept, then the others.

  Args:
    rounds: from `compile_rounds`.
    defender: the network and clean images.
    suspect: as for `rounds`.
    directory: each round is kept in its `checkpoints/rounds` as soon as it is
      done; None: none is.

  Yields:
    The rounds; of those that were kept the mask is None.

  Raises:
    UserError: tuning diverged, or the disk refused.
  """
  data = defender.weights, defender.images, defender.labels
  path = checkpoint_path(directory, "rounds")
  if path is None:
    yield from _checked(rounds(defender.key, *data, suspect))
    return
  last = None
  with Checkpoints(path, keep_latest=KEPT_ROUNDS) as checkpoints:
    for last in _kept(checkpoints, defender.weights):
      yield last
    for result in _checked(rounds(defender.key, *data, suspect, last)):
      state = TrainState(np.int32(result.number), *result.weights, None)
      meta = result._asdict()
      del meta["weights"], meta["mask"]
      checkpoints.save(result.number, state, {}, meta, 0.0)
      yield result


def _kept(checkpoints: Checkpoints, weights: Weights) -> Iterator[Round]:
  """Yield the rounds in a directory; `weights` has their shapes."""
  target = TrainState(jax.ShapeDtypeStruct((), np.int32), *weights, None)
  for number in range(1, (checkpoints.latest_step() or 0) + 1):
    kept = checkpoints.restore(target, step=number)
    yield Round(weights=kept.state.weights, mask=None, **kept.meta)


def _checked(rounds: Iterable[Round]) -> Iterator[Round]:
  """Log each round, with a progress bar, and check that it is finite."""
  for result in batching.progress(rounds, "round"):
    check_finite(result.weights, "learning_rate")
    logger.info(
      "round %d: %.0f%% of each range pruned, accuracy %.1f%%, %s",
      result.number,
      100 * result.percent,
      100 * result.accuracy,
      "accepted" if result.accepted else "too low",
    )
    yield result
