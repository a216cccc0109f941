"""Trains one run: resumes, saves, shows progress, stops when asked."""

import contextlib
import logging
import math
import pathlib
import sys
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tqdm

from bdjax import sharding, training
from bdjax.attacks.base import PreparationContext, TriggerVariables
from bdjax.attacks.poisoned_set import PoisonedSet, poison_dataset
from bdjax.batch import POISONED, Batch
from bdjax.checkpoints import Checkpoints
from bdjax.data import Dataset, Splits
from bdjax.errors import UserError
from bdjax.runs import directory as layout
from bdjax.runs.profiling import TracedCalls
from bdjax.runs.setup import Keys, Setup, make_keys
from bdjax.runs.signals import Stopped, collect_signals

logger = logging.getLogger(__name__)


class Trained(NamedTuple):
  """A run at its end.

  Attributes:
    carry: the states of classifier and generator.
    records: what `metrics.jsonl` holds.
    seconds: `prepare`, `compile` and `train`, of all starts of the run
      together.
    commits: of the sources, one for each that trained a part of the run.
    poisoned_share: share of the images that training saw poisoned; of a set
      poisoned once, exact; of batches, over the run.
  """

  carry: training.Carry
  records: list[dict[str, Any]]
  seconds: dict[str, float]
  commits: list[str]
  poisoned_share: float


def train(
  setup: Setup,
  splits: Splits,
  seed: int,
  directory: pathlib.Path,
  commit: str,
  *,
  begin: training.Carry | None = None,
  clean: tuple[Any, Any] | None = None,
) -> Trained:
  """Train to the end of the run, from where its checkpoints are.

  Args:
    setup: from `setup.build`.
    splits: the training images are put on the devices whole.
    seed: of the run.
    directory: of the run; `checkpoints/` and `metrics.jsonl` go there.
    commit: of the sources, for the record.
    begin: the states to begin with; new ones by default.
    clean: model and weights of a network trained clean, for attacks that need
      one.

  Raises:
    Stopped: after SIGTERM or Ctrl-C; the run is saved.
    UserError: a loss that is not finite, no device memory, a full disk, a
      checkpoint of another model.
  """
  keys = make_keys(seed)
  meta = {
    "seconds": {"prepare": 0.0, "compile": 0.0, "train": 0.0},
    "commits": [],
  }
  carry = begin or setup.init(keys.init, splits.train.images)
  with (
    Checkpoints(directory / layout.CHECKPOINTS) as checkpoints,
    collect_signals() as received,
  ):
    saved = checkpoints.restore(carry.classifier, carry.generator)
    step = 0
    if saved is not None:
      logger.info("resuming from step %d", saved.step)
      carry = training.Carry(saved.state, saved.generator)
      step, meta = saved.step, meta | saved.meta
    elif begin is None and setup.attack and setup.attack.prepare:
      carry = _prepare(setup, splits, keys, carry, meta, clean)
    poisoned = poisoned_set(
      setup, splits.train, keys, carry.generator.variables
    )
    log = layout.MetricsLog(directory, step)
    loop = _Loop(setup, checkpoints, log, meta, received)
    with contextlib.closing(log):
      if step < setup.total_steps and not received:
        if commit not in meta["commits"]:
          meta["commits"].append(commit)
        carry = loop.run(carry, keys.fit, _data(splits.train, poisoned))
  if received:  # saved by now; also where it came after the last step
    step = int(carry.classifier.step)
    raise Stopped(received[0], f"stopped at step {step}")
  share = _poisoned_share(poisoned, log.records)
  return Trained(carry, log.records, meta["seconds"], meta["commits"], share)


def _prepare(setup, splits, keys, carry, meta, clean):
  """Run the attack's stage before training."""
  begin = time.perf_counter()
  logger.info("preparing %s", setup.config.attack)
  images, labels = sharding.replicate(setup.mesh, tuple(splits.train))
  context = PreparationContext(images, labels, setup.mesh, clean)
  variables = setup.attack.prepare(
    keys.prepare, carry.generator.variables, context
  )
  carry = training.init_carry(
    setup.optimizers, carry.classifier.weights, variables
  )
  carry = jax.block_until_ready(sharding.replicate(setup.mesh, carry))
  meta["seconds"]["prepare"] += time.perf_counter() - begin
  return carry


def poisoned_set(
  setup: Setup, train: Dataset, keys: Keys, variables: TriggerVariables
) -> PoisonedSet | None:
  """Return the run's poisoned training set; None where batches are poisoned.

  It depends on the seed alone, so it is the same whenever it is made.
  """
  if not setup.poisons_dataset:
    return None
  settings = setup.config.settings
  return poison_dataset(
    setup.attack,
    variables,
    keys.poison,
    train.images,
    train.labels,
    settings.poison_rate,
    getattr(settings, "class_rate", None),
  )


def _data(train: Dataset, poisoned: PoisonedSet | None) -> Batch:
  if poisoned is not None:
    return Batch(poisoned.images, poisoned.labels, poisoned.roles)
  return Batch(train.images, train.labels, np.zeros(len(train.labels), np.int8))


def _poisoned_share(poisoned, records) -> float:
  if poisoned is not None:
    return float((poisoned.roles == POISONED).mean())
  shares = [r["poisoned_share"] for r in records]
  return float(np.mean(shares)) if shares else 0.0


class _Loop:
  """The training loop of one run."""

  def __init__(self, setup, checkpoints, log, meta, received):
    self.setup, self.checkpoints, self.log = setup, checkpoints, log
    self.meta, self.seconds, self.received = meta, meta["seconds"], received
    steps = jnp.arange(setup.total_steps)
    self.rates = np.asarray(jax.jit(jax.vmap(setup.learning_rate))(steps))
    self.losses: list[float] = []  # since the last checkpoint

  def run(self, carry, key, data):
    setup = self.setup
    data = sharding.replicate(setup.mesh, data)
    begin = time.perf_counter()
    call = _compile(setup, carry, key, data)
    self.seconds["compile"] += time.perf_counter() - begin
    saved = last = time.perf_counter()
    bar = _progress_bar(setup.total_steps, int(carry.classifier.step))
    loop = training.fit(
      call,
      carry,
      key,
      data,
      steps=setup.steps,
      calls=setup.calls,
      epochs=setup.config.epochs,
      each_epoch=setup.each_epoch,
      setting=setup.setting,
    )
    with bar, TracedCalls(setup.config.profile) as calls:
      for step, latest, metrics in loop:
        carry, metrics = latest, jax.device_get(metrics)
        now = time.perf_counter()
        self.seconds["train"] += now - last
        record = self._record(step, metrics, now - last)
        last = now
        self.log.append(record)
        _show(bar, record)
        stop = bool(self.received)
        late = now - saved >= setup.config.checkpoint_seconds
        if stop or late or step == setup.total_steps:
          self._save(step, carry)
          saved = last = time.perf_counter()
        if stop:
          break
        if calls.count():  # a trace began or ended, which takes a while
          last = time.perf_counter()
    return carry

  def _record(self, step, metrics, seconds):
    """Return one line of the log.

    Raises:
      UserError: the loss is not finite.
    """
    losses = metrics["loss"]
    if not np.isfinite(losses).all():
      first = int(np.argmin(np.isfinite(losses)))
      at = step - self.setup.steps + first + 1
      raise self._diverged(f"the loss is {losses[first]} at step {at}")
    self.losses += losses.tolist()
    sums = {k: int(v.sum()) for k, v in metrics.items() if k != "loss"}
    images = self.setup.config.batch_size * self.setup.steps
    record = {
      "step": step,
      "epoch": step / (self.setup.steps * self.setup.calls),
      "loss": float(losses.mean()),
      "accuracy": sums["clean_correct"] / max(sums["clean"], 1),
      "asr": _ratio(sums["poisoned_correct"], sums["poisoned"]),
      "poisoned_share": sums["poisoned"] / images,
    }
    if sums["cover"]:
      record["cover_accuracy"] = _ratio(sums["cover_correct"], sums["cover"])
    return record | {
      "learning_rate": float(self.rates[step - 1]),
      "images_per_second": images / seconds,
      "seconds": self.seconds["train"],
    }

  def _diverged(self, reason):
    rate = self.setup.config.learning_rate
    return UserError(
      f"learning_rate must be smaller (got {rate:g}): {reason}; try "
      f"{rate / 4:g} with another run_name or overwrite; the last good "
      "checkpoint is kept"
    )

  def _save(self, step, carry):
    # The last update may have broken what its own loss was still good for.
    if not _all_finite((carry.classifier.params, carry.generator.params)):
      raise self._diverged(f"the weights are not finite after step {step}")
    loss = math.fsum(self.losses) / len(self.losses)
    self.checkpoints.save(
      step, carry.classifier, carry.generator, self.meta, loss
    )
    self.losses = []


def _ratio(part: int, whole: int) -> float | None:
  return part / whole if whole else None


@jax.jit
def _all_finite(tree):
  leaves = [
    jnp.isfinite(x).all()
    for x in jax.tree.leaves(tree)
    if jnp.issubdtype(x.dtype, jnp.floating)
  ]
  return jnp.all(jnp.array(leaves))


def _compile(setup, carry, key, data):
  order = jnp.arange(data.labels.shape[0], dtype=jnp.int32)
  lowered = setup.call.lower(carry, key, data, order, 0, *setup.setting)
  return lowered.compile()


def _progress_bar(total, step):
  return tqdm.tqdm(
    total=total,
    initial=step,
    unit="step",
    file=sys.stderr,
    disable=not sys.stderr.isatty(),
    dynamic_ncols=True,
  )


def _show(bar, record):
  asr = "" if record["asr"] is None else f" ASR {record['asr']:.1%}"
  bar.set_postfix_str(
    f"loss {record['loss']:.3f} clean {record['accuracy']:.1%}{asr} "
    f"{record['images_per_second']:.0f} images/s",
    refresh=False,
  )
  bar.update(record["step"] - bar.n)
