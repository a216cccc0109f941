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
from experiments.common.program import Program, make_keys
from experiments.common.rundir import MetricsLog


class Stopped(Exception):
  """The run was asked to stop, and has saved where it is."""

  def __init__(self, signum: int, step: int):
    super().__init__(f"stopped at step {step}")
    self.signum, self.step = signum, step


class Trained(NamedTuple):
  """A run at its end.

  Attributes:
    carry: the states of classifier and generator.
    records: what `metrics.jsonl` holds.
    seconds: `compile` and `train`, of all starts of the run together.
    resumed_at: the step that this process went on from; 0 for a fresh run.
  """

  carry: training.Carry
  records: list[dict[str, Any]]
  seconds: dict[str, float]
  resumed_at: int


@contextlib.contextmanager
def _stop_signals() -> Iterator[list[int]]:
  """Collects SIGTERM and Ctrl-C; a second one is not waited for."""
  received: list[int] = []

  def handler(signum, frame):
    if received:
      raise KeyboardInterrupt
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
  report: Callable[[str], None],
) -> Trained:
  """Trains to the end of the run, from where its checkpoints are.

  Args:
    program: from `build`.
    splits: the training images are put on the devices whole.
    seed: of the run.
    directory: of the run; `checkpoints/` and `metrics.jsonl` go there.
    report: takes one line.

  Raises:
    Stopped: after SIGTERM or Ctrl-C; the run is saved.
    UserError: a loss that is not finite, no device memory, a full disk, a
      checkpoint of another model.
  """
  keys = make_keys(seed)
  carry = program.create(keys.init)
  with (
    Checkpoints(directory / "checkpoints") as checkpoints,
    _stop_signals() as received,
  ):
    carry, seconds, resumed_at = _resume(checkpoints, carry, report)
    log = MetricsLog(directory / "metrics.jsonl", resumed_at)
    loop = _Loop(program, checkpoints, log, seconds, received)
    with contextlib.closing(log), _device_memory(program.config.batch_size):
      if resumed_at < program.total_steps:
        carry = loop.run(carry, keys.fit, splits)
  return Trained(carry, log.records, seconds, resumed_at)


def _resume(checkpoints, carry, report):
  found = checkpoints.restore(carry.state, carry.generator, report=report)
  if found is None:
    return carry, {"compile": 0.0, "train": 0.0}, 0
  report(f"going on from step {found.step}")
  return (
    training.Carry(found.state, found.generator),
    dict(found.meta["seconds"]),
    found.step,
  )


class _Loop:
  """The loop over calls, with what it keeps count of."""

  def __init__(self, program, checkpoints, log, seconds, received):
    self.program, self.checkpoints, self.log = program, checkpoints, log
    self.seconds, self.received = seconds, received
    self.losses: list[float] = []  # since the last checkpoint

  def run(self, carry, key, splits):
    program, config = self.program, self.program.config
    images, labels = sharding.replicate(
      program.mesh, (splits.train.images, splits.train.labels)
    )
    begin = time.perf_counter()
    call = _compile(program, carry, key, images, labels)
    self.seconds["compile"] += time.perf_counter() - begin
    saved = last = time.perf_counter()
    spent = self.seconds["train"]
    with _progress(program.total_steps, int(carry.state.step)) as bar:
      for step, latest, metrics in training.fit(
        call,
        carry,
        key,
        images,
        labels,
        steps=program.steps,
        calls=program.calls,
        epochs=config.epochs,
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
        if stop and step < program.total_steps:
          self.checkpoints.wait()
          raise Stopped(self.received[0], step)
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
      "learning_rate": float(self.program.learning_rate(step - 1)),
      "images_per_second": config.batch_size * self.program.steps / seconds,
      "seconds": spent,
    }

  def _diverged(self, what):
    rate = self.program.config.learning_rate
    return UserError(
      f"{what}: try --learning_rate={rate / 4:g} (now {rate:g}); the last good "
      "checkpoint is kept"
    )

  def _save(self, step, carry):
    # The last update may have broken what its own loss was still good for.
    if not _all_finite((carry.state.params, carry.generator.params)):
      raise self._diverged(f"the weights are not finite after step {step}")
    self.checkpoints.save(
      step,
      carry.state,
      carry.generator,
      {"seconds": dict(self.seconds)},
      math.fsum(self.losses) / len(self.losses),
    )
    self.losses = []


@jax.jit
def _all_finite(tree):
  return jnp.all(
    jnp.array([jnp.isfinite(x).all() for x in jax.tree.leaves(tree)])
  )


def _compile(program, carry, key, images, labels):
  order = jnp.arange(labels.shape[0], dtype=jnp.int32)
  lowered = program.call.lower(carry, key, images, labels, order, 0)
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


@contextlib.contextmanager
def _device_memory(batch_size: int) -> Iterator[None]:
  try:
    yield
  except jax.errors.JaxRuntimeError as error:
    if "RESOURCE_EXHAUSTED" not in str(error):
      raise
    raise UserError(
      f"the device has no memory left at --batch_size={batch_size}: try "
      f"--batch_size={max(1, batch_size // 2)}"
    ) from error
