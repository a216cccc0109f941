"""Neural Cleanse: the smallest trigger for every class (Wang et al. 2019).

python -m experiments.neural_cleanse --run=runs/badnets-mnist
python -m experiments.neural_cleanse --run=runs/badnets-mnist \
  --null_runs=runs/clean-mnist-seeds
"""

import dataclasses
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bdjax import metrics, plots
from bdjax.attacks.triggers import Trigger, stamp
from bdjax.checkpoints import Checkpoints
from bdjax.defenses import anomaly, neural_cleanse, tuning
from bdjax.errors import UserError
from bdjax.models import Weights
from experiments import defending
from experiments.defending import Findings, flag, null_runs
from experiments.defending.subject import Subject

STRETCH = 5  # steps a call: what a stop may lose


@dataclasses.dataclass(frozen=True)
class Config(defending.Config):
  """Flags of Neural Cleanse; the defaults of the search are the authors'."""

  steps: int = flag(
    1000, "Of the cost's schedule, at most; most stop early.", low=1
  )
  updates: int = flag(31, "Mini-batches a step.", low=1)
  batch_size: int = flag(32, "Images an update.", low=1)
  asr_threshold: float = flag(
    0.99, "Success rate that a mask must reach.", above=0, high=1
  )
  patience: int = flag(5, "Steps before the cost moves.", low=1)
  early_stop_patience: int = flag(10, "Steps without a smaller mask.", low=1)
  restarts: int = flag(1, "Searches a class, from other starts.", low=1)
  class_batch: int | None = flag(
    None,
    "Searches at a time on each device (default: 1 on CPU, else what fits).",
    free=True,
    low=1,
  )
  threshold: float = flag(
    2.0, "Anomaly index above which a class is flagged.", above=0
  )
  unlearn: bool = flag(True, "Unlearns the triggers of flagged classes.")
  unlearn_epochs: int = flag(5, "Passes over the defender's images.", low=1)
  unlearn_learning_rate: float = flag(0.01, "Of these passes.", above=0)
  null_runs: str | None = flag(
    None,
    "Clean runs or groups of them, with commas: searched alike, they give the "
    "p-value.",
    free=True,
  )


class Found(NamedTuple):
  """What the defender finds; R restarts, K classes."""

  reversed: neural_cleanse.Reversed  # [R*K,...], all classes of a restart first
  norms: np.ndarray  # float [R,K], NaN where not reached
  norm: np.ndarray  # float [K], the median over restarts
  index: np.ndarray  # float [K], of these
  flagged: list[int]
  best: np.ndarray  # int [K], the search with the smallest mask
  unlearned: Weights | None
  seconds: float  # of the search, over all starts


def defend(
  defender: defending.Defender, config: Config, space: defending.Space
) -> Found:
  """Searches, judges the norms, and unlearns what stands out."""
  num = len(defender.class_names)
  if num < 3:
    raise UserError(f"an anomaly index takes 3 classes, and there are {num}")
  search_key, tune_key = jax.random.split(space.key)
  state, seconds = _search(defender, config, space, search_key)
  found = neural_cleanse.finish(state)
  norms = found.norms.reshape(config.restarts, num)
  norm = _median(norms)
  index = anomaly.anomaly_index(norm, np.isfinite(norm))
  flagged = anomaly.flagged(norm, index, config.threshold)
  smallest = np.where(np.isfinite(norms), norms, np.inf).argmin(0)
  best = smallest * num + np.arange(num)
  space.save_arrays(
    "triggers",
    masks=found.masks[best],
    patterns=found.patterns[best],
    flagged=np.array(flagged, np.int32),
  )
  unlearned = None
  if config.unlearn:
    unlearned = defender.weights
    if flagged:
      rows = best[flagged]
      trigger = Trigger(found.masks[rows], found.patterns[rows])
      unlearned = _unlearn(tune_key, defender, config, trigger)
      defending.check_finite(unlearned, "--unlearn_learning_rate")
    space.save("unlearned", unlearned)
  return Found(found, norms, norm, index, flagged, best, unlearned, seconds)


def _median(norms: np.ndarray) -> np.ndarray:
  """The median over restarts; one that did not reach the class is infinite.

  Args:
    norms: float [R,K], NaN where not reached.

  Returns:
    float [K], NaN where half of them or more did not reach the class.
  """
  middle = np.median(np.where(np.isfinite(norms), norms, np.inf), 0)
  return np.where(np.isfinite(middle), middle, np.nan)


def _search(defender, config, space, key):
  """Goes on from the last stretch that was saved, to the end."""
  num = len(defender.class_names) * config.restarts
  init_key, call_key = jax.random.split(key)
  names = neural_cleanse.Settings._fields
  settings = neural_cleanse.Settings(
    **{n: getattr(config, n) for n in names if hasattr(config, n)}
  )
  at_once = neural_cleanse.searches_at_once(defender.shape, config.batch_size)
  call = neural_cleanse.make_call(
    defender.model,
    settings,
    defender.mesh,
    class_batch=config.class_batch or at_once,
    stretch=STRETCH,
  )
  targets = jnp.tile(jnp.arange(num // config.restarts), config.restarts)
  init = jax.jit(neural_cleanse.init, static_argnums=(1, 2))
  state = init(init_key, num, defender.shape)
  spent = 0.0
  with Checkpoints(space.directory / "checkpoints" / "search") as checkpoints:
    kept = checkpoints.restore(state, report=space.report)
    if kept is not None:
      state, spent = kept.state, kept.meta["seconds"]
      space.report(f"going on from step {kept.step}")
    begin = time.perf_counter() - spent
    first = int(state.steps.max()) // STRETCH
    for number in space.progress(
      range(first, -(-config.steps // STRETCH)), f"x{STRETCH} steps"
    ):
      if state.frozen.all():
        break
      state = call(defender.weights, call_key, defender.images, targets, state)
      jax.block_until_ready(state)
      spent = time.perf_counter() - begin
      checkpoints.save((number + 1) * STRETCH, state, {}, {"seconds": spent}, 0)
  return state, spent


def _unlearn(key, defender, config, trigger) -> Weights:
  """Wang et al. 2019, section VI.B: 20% stamped, with their true labels."""
  tune = tuning.make_tune(
    defender.model,
    defender.batch(128),
    defender.mesh,
    epochs=config.unlearn_epochs,
    learning_rate=config.unlearn_learning_rate,
    transform=tuning.unlearn,
  )
  tuned, _ = tune(
    key,
    defender.weights,
    defender.images,
    defender.labels,
    trigger=jax.tree.map(jnp.asarray, trigger),
  )
  return tuned


def examine(
  found: Found,
  defender: defending.Defender,
  exam: defending.Exam,
  config: Config,
  space: defending.Space,
) -> Findings:
  """What was flagged, whether rightly, and what unlearning does."""
  norms, index = found.norm, found.index
  measured: dict[str, Any] = {
    "flagged": found.flagged,
    "anomaly_index": _json(index),
    "mask_norm": _json(norms),
    "largest_index": anomaly.statistic(norms, index),
  }
  wrong = [k for k in range(len(norms)) if k not in exam.targets]
  if exam.has_attack:
    measured["detection_rate"] = _share(found.flagged, exam.targets)
  if wrong:
    measured["false_alarm_rate"] = _share(found.flagged, wrong)
  for name, score in exam.scores(defender.model, defender.weights).items():
    measured[f"{name}_before"] = score
  if found.unlearned is not None:
    for name, score in exam.scores(defender.model, found.unlearned).items():
      measured[f"{name}_unlearned"] = score
  shape = found.norms.shape
  details = {
    "reached": found.reversed.reached.reshape(shape).tolist(),
    "asr": found.reversed.asr.reshape(shape).tolist(),
    "steps": found.reversed.steps.reshape(shape).tolist(),
    "norms": [_json(row) for row in found.norms],
    "search_seconds": found.seconds,
  }
  if config.restarts > 1:
    details["over_restarts"] = _over_restarts(found.norms)
  _draw(found, norms, index, defender, config, space)
  return Findings(measured, details)


def _over_restarts(norms: np.ndarray) -> list[dict[str, Any]]:
  """Each class's mean anomaly index, and its interval, over restarts."""
  index = []
  for row in norms:
    try:
      index.append(anomaly.anomaly_index(row, np.isfinite(row)))
    except UserError:  # too few reached, or all alike: it says nothing
      index.append(np.full(row.shape, np.nan))
  scores = anomaly.over_restarts(np.stack(index))
  return [{k: _finite(v) for k, v in s._asdict().items()} for s in scores]


def _share(flagged: list[int], labels: list[int]) -> metrics.Score:
  share = sum(label in flagged for label in labels) / len(labels)
  return metrics.proportion(share, len(labels))._replace(over="labels")


def _finite(value: Any) -> Any:
  """None for what JSON cannot hold."""
  return value if isinstance(value, str) or np.isfinite(value) else None


def _json(values: np.ndarray) -> list[float | None]:
  return [_finite(float(value)) for value in values]


def _draw(found, norms, index, defender, config, space):
  masks = found.reversed.masks[found.best]
  patterns = found.reversed.patterns[found.best]
  sample = np.asarray(defender.images[:1], np.float32) / 255.0
  stamped = stamp(Trigger(masks, patterns), sample)
  names = defender.class_names
  plots.reversed_triggers(
    space.figure("triggers"),
    masks,
    patterns,
    np.asarray(stamped),
    names,
    found.flagged,
  )
  plots.mask_norms(
    space.figure("norms"),
    norms,
    index,
    names,
    found.flagged,
    config.threshold,
  )


def amend(
  out: dict[str, Any], subject: Subject, config: Config, report
) -> dict[str, Any]:
  """Adds the p-value, where there are clean runs to compare with."""
  if not config.null_runs:
    return out
  paths = config.null_runs.split(",")
  found = null_runs.search(DEFENSE, config, subject, paths, report)
  null = [each["measured"]["largest_index"] for each in found]
  value = anomaly.p_value(out["measured"]["largest_index"], null)
  return out | {
    "measured": out["measured"] | {"p_value": [value]},
    "details": out["details"] | {"null_largest_indices": null},
  }


DEFENSE = defending.Defense(
  "neural_cleanse", Config, defend, examine, amend=amend
)

if __name__ == "__main__":
  defending.main(DEFENSE)
