"""Neural Cleanse as one call: search, anomaly index, unlearning.

References:
  Wang, Yao, Shan, Li, Viswanath, Zheng and Zhao (2019), Neural Cleanse:
  Identifying and Mitigating Backdoor Attacks in Neural Networks, IEEE S&P.
"""

import contextlib
import dataclasses
import logging
import pathlib
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bdjax.attacks.patches import Trigger
from bdjax.batching import progress
from bdjax.checkpoints import Checkpoints
from bdjax.defenses import tuning
from bdjax.defenses.base import (
  Defender,
  DefenseMethod,
  Repair,
  Results,
  Verdict,
  check_finite,
  checkpoint_path,
)
from bdjax.defenses.neural_cleanse import anomaly, searches
from bdjax.defenses.neural_cleanse.schedule import SearchSettings
from bdjax.defenses.neural_cleanse.search import SearchState
from bdjax.defenses.neural_cleanse.unlearning import unlearn
from bdjax.errors import UserError
from bdjax.models import Weights
from bdjax.settings import check, setting

logger = logging.getLogger(__name__)

_STEPS_PER_CALL = 5  # steps that an interruption may lose
_MAX_BATCH = 128  # images of a step of unlearning


@dataclasses.dataclass(frozen=True)
class NeuralCleanseSettings(SearchSettings):
  """Settings of Neural Cleanse; those of the search are the authors'.

  Unlearning takes five passes over the defender's images, where the paper
  takes one over a tenth of the training set.
  """

  restarts: int = setting(
    1, "Searches of each class, from other initialisations.", low=1
  )
  class_batch: int | None = setting(
    None,
    "Searches at a time on each device (default: 1 on CPU, else what fits).",
    free=True,
    low=1,
  )
  threshold: float = setting(
    2.0, "Anomaly index above which a class is accused.", above=0
  )
  unlearn: bool = setting(
    True, "Unlearning of the triggers of accused classes."
  )
  unlearn_epochs: int = setting(
    5, "Passes over the defender's images in unlearning.", low=1
  )
  unlearn_learning_rate: float = setting(
    0.01, "Learning rate of unlearning.", above=0
  )


def neural_cleanse(
  defender: Defender,
  settings: NeuralCleanseSettings | None = None,
  directory: pathlib.Path | None = None,
) -> Results:
  """Search each class's smallest trigger, and unlearn those too small.

  Args:
    defender: the network and clean images; their labels are used by unlearning
      alone.
    settings: of search, judgement and unlearning; None for the defaults.
    directory: where `checkpoints/search` goes, from which an interrupted call
      with the same arguments is resumed, with the same results; None keeps
      nothing.

  Returns:
    A `Verdict`, whose sizes are medians over restarts and whose triggers are
    each class's smallest; the `Repair` "before", the network as it was; and
    where `settings.unlearn`, the `Repair` "unlearned", the same network again
    where no class is accused.

  Raises:
    UserError: there are fewer than 3 classes, or fewer than 3 whose search
      reached the success rate; a setting is out of range; unlearning diverged.
  """
  settings = settings or NeuralCleanseSettings()
  check(settings)
  if defender.num_classes < 3:
    raise UserError(
      f"Neural Cleanse needs at least 3 classes (got {defender.num_classes})"
    )
  search_key, tune_key = jax.random.split(defender.key)
  state, seconds = _search(
    search_key, defender, settings, checkpoint_path(directory, "search")
  )
  verdict = _judge(searches.finish(state), settings, seconds)
  before = Repair("before", defender.model, defender.weights, saved=False)
  if not settings.unlearn:
    return verdict, before
  weights = defender.weights
  if verdict.suspects:
    rows = np.array(verdict.suspects)
    triggers = jax.tree.map(lambda x: jnp.asarray(x[rows]), verdict.triggers)
    weights = _unlearn(tune_key, defender, settings, triggers)
  return verdict, before, Repair("unlearned", defender.model, weights)


def _search(
  key: jax.Array,
  defender: Defender,
  settings: NeuralCleanseSettings,
  path: pathlib.Path | None,
) -> tuple[SearchState, float]:
  """Search all classes: (states [R*K], all classes of a restart first; s)."""
  init_key, call_key = jax.random.split(key)
  shape = defender.image_shape
  call = searches.compile_search_steps(
    defender.model,
    settings,
    defender.mesh,
    class_batch=settings.class_batch
    or searches.max_searches(shape, settings.batch_size),
    steps_per_call=_STEPS_PER_CALL,
  )
  targets = jnp.tile(jnp.arange(defender.num_classes), settings.restarts)
  init = jax.jit(searches.init, static_argnums=(1, 2))
  state, seconds = init(init_key, len(targets), shape), 0.0
  with Checkpoints(path) if path else contextlib.nullcontext() as checkpoints:
    kept = checkpoints.restore(state) if checkpoints else None
    if kept is not None:
      state, seconds = kept.state, kept.meta["seconds"]
      logger.info("resuming the search at step %d", kept.step)
    begin = time.perf_counter() - seconds
    first = int(state.steps.max()) // _STEPS_PER_CALL
    calls = range(first, -(-settings.steps // _STEPS_PER_CALL))
    for number in progress(calls, f"x{_STEPS_PER_CALL} steps"):
      if state.frozen.all():
        break
      state = call(defender.weights, call_key, defender.images, targets, state)
      jax.block_until_ready(state)
      seconds = time.perf_counter() - begin
      if checkpoints:
        step = (number + 1) * _STEPS_PER_CALL
        checkpoints.save(step, state, {}, {"seconds": seconds}, 0)
  return state, seconds


def _judge(
  found: searches.ReverseEngineered,
  settings: NeuralCleanseSettings,
  seconds: float,
) -> Verdict:
  """Compute the anomaly index of each class from R*K searches."""
  norms = found.norms.reshape(settings.restarts, -1)
  norm = anomaly.median_over_restarts(norms)
  index = anomaly.anomaly_index(norm, np.isfinite(norm))
  smallest = np.where(np.isfinite(norms), norms, np.inf).argmin(0)
  best = smallest * norms.shape[1] + np.arange(norms.shape[1])
  details = {
    "reached": found.reached.reshape(norms.shape).tolist(),
    "asr": found.asr.reshape(norms.shape).tolist(),
    "steps": found.steps.reshape(norms.shape).tolist(),
    "norms": [[_finite(x) for x in row] for row in norms.tolist()],
    "search_seconds": seconds,
  }
  if settings.restarts > 1:
    details["over_restarts"] = _over_restarts(norms)
  return Verdict(
    statistic=anomaly.max_index(norm, index),
    index=index,
    suspects=anomaly.flagged(norm, index, settings.threshold),
    threshold=settings.threshold,
    sizes=norm,
    triggers=Trigger(found.masks[best], found.patterns[best]),
    details=details,
  )


def _over_restarts(norms: np.ndarray) -> list[dict[str, Any]]:
  """Compute each class's mean anomaly index over restarts, JSON-ready."""
  index = []
  for row in norms:
    try:
      index.append(anomaly.anomaly_index(row, np.isfinite(row)))
    except UserError:  # too few reached, or all alike: it says nothing
      index.append(np.full(row.shape, np.nan))
  scores = anomaly.over_restarts(np.stack(index))
  return [{k: _finite(v) for k, v in s._asdict().items()} for s in scores]


def _finite(value: Any) -> Any:
  """Replace what JSON cannot hold by None."""
  return value if isinstance(value, str) or np.isfinite(value) else None


def _unlearn(
  key: jax.Array,
  defender: Defender,
  settings: NeuralCleanseSettings,
  triggers: Trigger,
) -> Weights:
  """Fine-tune with triggers [T] on 20% of the images, labels unmodified."""
  tune = tuning.compile_tuning(
    defender.model,
    defender.batch_size(_MAX_BATCH),
    defender.mesh,
    epochs=settings.unlearn_epochs,
    learning_rate=settings.unlearn_learning_rate,
    transform=unlearn,
  )
  weights, _ = tune(
    key, defender.weights, defender.images, defender.labels, trigger=triggers
  )
  check_finite(weights, "unlearn_learning_rate")
  return weights


METHOD = DefenseMethod(
  "neural_cleanse",
  NeuralCleanseSettings,
  neural_cleanse,
  "Wang, Yao, Shan, Li, Viswanath, Zheng and Zhao (2019), Neural Cleanse: "
  "Identifying and Mitigating Backdoor Attacks in Neural Networks",
  gives_verdict=True,
)
