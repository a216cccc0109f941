"""Trains one run: resumes, saves, shows progress, stops when asked."""

import contextlib
import math
import pathlib
import signal
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tqdm

from bdjax import sharding, training
from bdjax.checkpoints import Checkpoints
from bdjax.data import Splits
from bdjax.errors import UserError
from experiments.common.profiling import Calls
from experiments.common.program import Program, make_keys
from experiments.common.rundir import MetricsLog


class Stopped(Exception):
  """The run was asked to stop; what it had trained is saved."""

  def __init__(self, signum: int, where: str = "stopped"):
    super().__init__(where)
    self.signum = signum


class Trained(NamedTuple):
  """A run at its end.

  Attributes:
    carry: the states of classifier and generator.
    records: what `metrics.jsonl` holds.
    seconds: `compile` and `train`, of all starts of the run together.
    commits: of the sources, one for each that trained a part of the run.
  """

  carry: training.Carry
  records: list[dict[str, Any]]
  seconds: dict[str, float]
  commits: list[str]


@contextlib.contextmanager
def stop_signals() -> Iterator[list[int]]:
  """Collects SIGTERM and Ctrl-C; a second one is not waited for."""
  received: list[int] = []

  def handler(signum, frame):
    if received:
      raise Stopped(signum, "stopped at once; the last checkpoint is kept")
    received.append(signum)

  # Only the main thread may set handlers; elsewhere the caller's stay.
  numbers = (signal.SIGINT, signal.SIGTERM)
  try:
    before = {n: signal.signal(n, handler) for n in numbers}
  except ValueError:
    before = {}
  try:
    yield received
  finally:
    for number, old in before.items():
      signal.signal(number, old)


def train(
  program: Program,
  splits: Splits,
  seed: int,
  directory: pathlib.Path,
  commit: str,
  report: Callable[[str], None],
  begin: training.Carry | None = None,
  received: list[int] | None = None,
) -> Trained:
  """Trains to the end of the run, from where its checkpoints are.

  Args:
    program: from `build`.
    splits: the training images are put on the devices whole.
    seed: of the run.
    directory: of the run; `checkpoints/` and `metrics.jsonl` go there.
    commit: of the sources, for the record.
    report: takes one line.
    begin: the states to begin with; fresh ones by default.
    received: signals; training stops when there is one. By default those that
      this process gets meanwhile.

  Raises:
    Stopped: after SIGTERM or Ctrl-C; the run is saved.
    UserError: a loss that is not finite, no device memory, a full disk, a
      checkpoint of another model.
  """
  keys = make_keys(seed)
  carry = begin or program.create(keys.init, splits.train.images)
  signals = stop_signals()
  if received is not None:
    signals = contextlib.nullcontext(received)
  with (
    Checkpoints(directory / "checkpoints") as checkpoints,
    signals as received,
  ):
    carry, step, meta = _resume(checkpoints, carry, report)
    log = MetricsLog(directory / "metrics.jsonl", step)
    loop = _Loop(program, checkpoints, log, meta, received)
    with contextlib.closing(log):
      if step < program.total_steps:
        if commit not in meta["commits"]:
          meta["commits"].append(commit)
        carry = loop.run(carry, keys.fit, splits)
  if received:  # saved by now; also where it came after the last step
    raise Stopped(received[0], f"stopped at step {int(carry.state.step)}")
  return Trained(carry, log.records, meta["seconds"], meta["commits"])


def _resume(checkpoints, carry, report):
  meta = {"seconds": {"compile": 0.0, "train": 0.0}, "commits": []}
  found = checkpoints.restore(carry.state, carry.generator, report=report)
  if found is None:
    return carry, 0, meta
  report(f"going on from step {found.step}")
  carry = training.Carry(found.state, found.generator)
  return carry, found.step, meta | found.meta


class _Loop:
  """The loop over calls, with what it keeps count of."""

  def __init__(self, program, checkpoints, log, meta, received):
    self.program, self.checkpoints, self.log = program, checkpoints, log
    self.meta, self.seconds, self.received = meta, meta["seconds"], received
    steps = jnp.arange(program.total_steps)
    self.rates = np.asarray(jax.jit(jax.vmap(program.learning_rate))(steps))
    self.losses: list[float] = []  # since the last checkpoint

  def run(self, carry, key, splits):
    program, config = self.program, self.program.config
    images, labels = sharding.replicate(
      program.mesh, (splits.train.images, splits.train.labels)
    )
    with program.lock:  # who has waited for it finds it compiled
      begin = time.perf_counter()
      call = _compile(program, carry, key, images, labels)
    self.seconds["compile"] += time.perf_counter() - begin
    if self.received:
      return carry
    saved = last = time.perf_counter()
    spent = self.seconds["train"]
    bar = _progress(program.total_steps, int(carry.state.step))
    with bar, Calls(config.profile) as calls:
      for step, latest, metrics in training.fit(
        call,
        carry,
        key,
        images,
        labels,
        steps=program.steps,
        calls=program.calls,
        epochs=config.epochs,
        each_epoch=program.each_epoch,
        setting=program.setting,
      ):
        carry, metrics = latest, jax.device_get(metrics)
        now = time.perf_counter()
        spent += now - last
        record = self._record(step, metrics, now - last, spent)
        last = now
        self.log.append(record)
        _show(bar, record)
        stop = bool(self.received)
        late = now - saved >= config.checkpoint_seconds
        if stop or late or step == program.total_steps:
          self.seconds["train"] = spent
          self._save(step, carry)
          saved = last = time.perf_counter()
        if stop:
          break
        if calls.count():  # a trace began or ended, which takes a while
          last = time.perf_counter()
    return carry

  def _record(self, step, metrics, seconds, spent):
    """One line of the log; raises where the loss is not finite."""
    losses = metrics["loss"]
    if not np.isfinite(losses).all():
      first = int(np.argmin(np.isfinite(losses)))
      at = step - self.program.steps + first + 1
      raise self._diverged(f"the loss is {losses[first]} at step {at}")
    self.losses += losses.tolist()
    sums = {k: int(v.sum()) for k, v in metrics.items() if k != "loss"}
    config = self.program.config
    return {
      "step": step,
      "epoch": step / (self.program.steps * self.program.calls),
      "loss": float(losses.mean()),
      "accuracy": sums["clean_correct"] / max(sums["clean"], 1),
      "asr": sums["poisoned_correct"] / sums["poisoned"]
      if sums["poisoned"]
      else None,
      "learning_rate": float(self.rates[step - 1]),
      "images_per_second": config.batch_size * self.program.steps / seconds,
      "seconds": spent,
    }

  def _diverged(self, what):
    rate = self.program.config.learning_rate
    return UserError(
      f"{what}: try --learning_rate={rate / 4:g} (now {rate:g}) with another "
      "--run_name or --overwrite; the last good checkpoint is kept"
    )

  def _save(self, step, carry):
    # The last update may have broken what its own loss was still good for.
    if not _all_finite((carry.state.params, carry.generator.params)):
      raise self._diverged(f"the weights are not finite after step {step}")
    self.checkpoints.save(
      step,
      carry.state,
      carry.generator,
      self.meta,
      math.fsum(self.losses) / len(self.losses),
    )
    self.losses = []


@jax.jit
def _all_finite(tree):
  return jnp.all(
    jnp.array([jnp.isfinite(x).all() for x in jax.tree.leaves(tree)])
  )


def _compile(program, carry, key, images, labels):
  if not hasattr(program.call, "lower"):
    return program.call  # of several members, compiled where they meet
  order = jnp.arange(labels.shape[0], dtype=jnp.int32)
  lowered = program.call.lower(
    carry, key, images, labels, order, 0, *program.setting
  )
  return lowered.compile()


def _progress(total, step):
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
