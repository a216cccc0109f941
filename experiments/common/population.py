"""How many members of a group train at a time, and the threads they have."""

import concurrent.futures
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from bdjax import memory
from bdjax.data import Splits
from bdjax.errors import UserError
from experiments.common.config import Config
from experiments.common.program import Program
from experiments.common.together import Together
from experiments.common.train import Stopped, stop_signals

# Takes the signals that end it; None: it looks for them itself.
Job = Callable[[list[int] | None], Any]


def at_once(config: Config, program: Program, splits: Splits) -> int:
  """How many members train at a time; nothing else knows why.

  Two on a CPU: what of one leaves a core idle (small operations, evaluation,
  figures), the other fills. Each has a thread and calls the program that all
  share, so that its bits are those of a run made alone. Where a batch is cut
  over devices, members come one after the other: two programs that wait for
  each other's devices may never end. On accelerators one, until measured
  (`python -m benchmarks.population --calls`). One as well under
  `--profile`: a process writes one trace at a time.

  Args:
    config: of the whole; says how many, if the user does.
    program: the largest of the members'.
    splits: the data.

  Raises:
    UserError: several programs are asked for on several devices.
  """
  wanted, devices = config.at_once, program.mesh.size
  if config.profile:
    return 1
  if config.vmap:
    most = memory.device_bytes() * 8 // 10
    return wanted or max(1, most // estimated_bytes(program, splits))
  if devices > 1:
    if wanted not in (None, 1):
      raise UserError(
        f"--at_once={wanted} needs a single device, and there are {devices}, "
        "which share each batch: leave it out, or take --vmap"
      )
    return 1
  return wanted or (2 if jax.default_backend() == "cpu" else 1)


def estimated_bytes(program: Program, splits: Splits) -> int:
  """Device bytes of the compiled training call, as XLA plans them."""
  images = jax.ShapeDtypeStruct(splits.train.images.shape, jnp.uint8)
  carry = jax.eval_shape(program.create, jax.random.key(0), images)
  labels = jax.ShapeDtypeStruct(splits.train.labels.shape, jnp.int32)
  key = jax.eval_shape(lambda: jax.random.key(0))
  lowered = program.call.lower(
    carry, key, images, labels, labels, 0, *program.setting
  )
  plan = lowered.compile().memory_analysis()
  return plan.argument_size_in_bytes + plan.temp_size_in_bytes


def train_all(
  programs: list[Program],
  member: Callable[[Program, list[int] | None], Any],
  width: int,
  vmap: bool,
) -> list[Any]:
  """Trains members, `width` at a time.

  Args:
    programs: one a member.
    member: trains one; `received` as in `train`.
    width: from `at_once`.
    vmap: whether what is trained at a time is one program.

  Returns:
    What each gave; raises as `run_all`.
  """
  jobs = [functools.partial(member, program) for program in programs]
  if not vmap:
    return run_all(jobs, width)
  found = {}
  for numbers in _alike(programs, width):
    together = Together(programs[numbers[0]].call_together, len(numbers))
    jobs = [
      functools.partial(_seated, together, seat, member, programs[number])
      for seat, number in enumerate(numbers)
    ]
    found |= zip(numbers, run_all(jobs, len(jobs)), strict=True)
  return [found[number] for number in range(len(programs))]


def _alike(programs: list[Program], width: int) -> list[list[int]]:
  """The numbers of programs that can be one, at most `width` together."""
  same: dict[int, list[int]] = {}
  for number, program in enumerate(programs):
    same.setdefault(id(program.call_together), []).append(number)
  return [
    numbers[i : i + width]
    for numbers in same.values()
    for i in range(0, len(numbers), width)
  ]


def _seated(together, seat, member, program, received):
  try:
    return member(program._replace(call=together.seat(seat)), received)
  finally:
    together.leave(seat)


def run_all(jobs: list[Job], width: int) -> list[Any]:
  """Runs jobs, `width` at a time, each in a thread.

  Args:
    jobs: with a width of 1 they run in this thread, one after the other.
    width: at least 1.

  Returns:
    What each gave.

  Raises:
    Stopped: after SIGTERM or Ctrl-C, once all have saved what they have.
    Exception: of the first that failed; the others are stopped before.
  """
  if min(width, len(jobs)) == 1:
    return [job(None) for job in jobs]
  pool = concurrent.futures.ThreadPoolExecutor(width)
  first = concurrent.futures.FIRST_COMPLETED
  with stop_signals() as received, pool:
    futures = [pool.submit(_unless_stopped, job, received) for job in jobs]
    try:
      pending = set(futures)
      while pending:
        # A signal may come to another thread: Python then has its handler wait
        # until this one wakes.
        done, pending = concurrent.futures.wait(pending, 0.2, first)
        for future in done:
          future.result()
    except BaseException:
      received.append(0)  # for those that still train
      raise
  if received:
    raise Stopped(received[0])
  return [future.result() for future in futures]


def _unless_stopped(job: Job, received: list[int]) -> Any:
  if received:
    raise Stopped(received[0])
  return job(received)
