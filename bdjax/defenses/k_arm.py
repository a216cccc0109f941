"""K-Arm: which class to search next, when there are too many for all.

Shen, Liu, Tao, An, Xu, Cheng, Ma and Zhang (2021), "Backdoor Scanning for Deep
Neural Networks through K-Arm Optimization" (ICML), section 3, and the defaults
of the authors' code. The search is Neural Cleanse's (`trigger_search.py`) and
each class is an arm of a bandit: a round takes one class a stretch of steps
further. First every arm has its warm-up; then, with probability epsilon, a
random arm that is not yet done, else the one that promises most.

Chosen here, where the paper is silent or its task another:
- an arm that has not reached the success rate promises 0;
- its first norm is the one after the round in which it first reached it, and
  its norm now the smallest so far, so that a promise is never negative;
- on an accelerator several arms are drawn for a round, without replacement;
- a random sample of the arms, drawn before any is searched, is searched to its
  end. The arms that the bandit settles on are the smallest of all, and say
  nothing of how large a mask usually is; the sample does (`among_many.py`);
- the scan ends when the smallest arms outside of the sample are done.

Left out: the paper's pre-screening of labels by the network's logits on clean
images, and its symmetric optimisation over pairs of source and target.

The state of all arms is on the host, so that a round costs what its arms cost.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bdjax import compiler
from bdjax.defenses import cost_schedule, neural_cleanse
from bdjax.defenses.trigger_search import State
from bdjax.models import Model


class Bandit(NamedTuple):
  """How arms are chosen.

  Attributes:
    warmup: rounds that every arm has; 2 in the authors' code.
    epsilon: chance of a random arm; 0.3 in the authors' code.
    beta: pixels squared, the weight of a small mask; 1e4 in the authors' code.
    rounds: at most so many after warm-up and sample, over all arms.
    settled: the scan ends when so many of the smallest arms are done.
  """

  warmup: int = 2
  epsilon: float = 0.3
  beta: float = 1e4
  rounds: int = 1000
  settled: int = 10


class Scan(NamedTuple):
  """A scan of K arms on the host, between two rounds.

  Attributes:
    state: of the searches [K], NumPy arrays that `play` writes to.
    first: float32 [K], pixels, the norm after the round in which an arm first
      reached the success rate; inf before.
    rounds: int32 [K], that each arm has had.
    number: int32 scalar, rounds done.
    free: int32 scalar, those of them in which the bandit chose.
  """

  state: State
  first: np.ndarray
  rounds: np.ndarray
  number: np.ndarray
  free: np.ndarray


def start(key: jax.Array, num: int, image_shape: tuple[int, int, int]) -> Scan:
  """A scan before its first round; the searches start as Neural Cleanse's.

  Args:
    key: a random key.
    num: K, the number of classes.
    image_shape: (H, W, C).
  """
  state = jax.jit(neural_cleanse.init, static_argnums=(1, 2))(
    key, num, image_shape
  )
  zero = np.zeros((), np.int32)
  first = np.full(num, np.inf, np.float32)
  return Scan(writable(state), first, np.zeros(num, np.int32), zero, zero)


def writable(tree: Any) -> Any:
  """Arrays as NumPy arrays of their own, for instance from a checkpoint."""
  return jax.tree.map(np.array, jax.device_get(tree))


def draw_reference(key: jax.Array, num: int, size: int) -> np.ndarray:
  """The sample that is searched to its end: bool [K], all where K <= size."""
  drawn = _generator(key, 0).permutation(num)[:size]
  return np.isin(np.arange(num), drawn)


def promise(
  first: np.ndarray, norms: np.ndarray, rounds: np.ndarray, beta: float
) -> np.ndarray:
  """What another round of each arm may bring; Shen et al. 2021, section 3.

  (first norm - norm now) / rounds + beta / norm now.

  Args:
    first: float [K], pixels; inf for an arm that has not reached its rate.
    norms: float [K], pixels, likewise.
    rounds: int [K], at least 1 where the norm is finite.
    beta: pixels squared.

  Returns:
    float64 [K], at least 0; 0 where the rate is not reached.
  """
  reached = np.isfinite(norms)
  now = np.where(reached, norms, 1.0).astype(np.float64)
  fallen = np.where(reached, first, 1.0) - now
  # A mask may shrink to nothing, where the class needs no trigger.
  size = np.maximum(now, 1e-6)
  return np.where(reached, fallen / np.maximum(rounds, 1) + beta / size, 0.0)


def choose(
  key: jax.Array,
  scan: Scan,
  reference: np.ndarray,
  bandit: Bandit,
  width: int = 1,
) -> tuple[np.ndarray, bool]:
  """The arms of the next round, without those that are done.

  The draw depends on the key and the number of the round alone, so that a
  scan that is stopped and gone on with equals an unbroken one.

  Args:
    key: of the scan.
    scan: not `finished`.
    reference: bool [K], the sample.
    bandit: how to choose.
    width: arms a round, at most.

  Returns:
    (int [A] without repeats, 1 <= A <= width; whether the bandit chose them).
  """
  awake = ~scan.state.frozen
  for waiting in (awake & (scan.rounds < bandit.warmup), awake & reference):
    if waiting.any():
      arms = np.flatnonzero(waiting)
      order = np.argsort(scan.rounds[arms], kind="stable")
      return arms[order[:width]], False
  generator = _generator(key, int(scan.number) + 1)
  worth = promise(scan.first, scan.state.best_norm, scan.rounds, bandit.beta)
  left, chosen = list(np.flatnonzero(awake)), []
  while left and len(chosen) < width:
    if generator.random() < bandit.epsilon:
      place = int(generator.integers(len(left)))
    else:
      place = int(np.argmax(worth[left]))
    chosen.append(left.pop(place))
  return np.array(chosen), True


def finished(scan: Scan, reference: np.ndarray, bandit: Bandit) -> bool:
  """Whether the scan is over: see `Bandit`, and the head of this file.

  Args:
    scan: between two rounds.
    reference: bool [K], the sample.
    bandit: how arms are chosen.
  """
  awake = ~scan.state.frozen
  if (awake & ((scan.rounds < bandit.warmup) | reference)).any():
    return False
  others = np.flatnonzero(~reference)
  order = np.argsort(scan.state.best_norm[others], kind="stable")
  smallest = others[order[: bandit.settled]]
  return bool(scan.free >= bandit.rounds or not awake[smallest].any())


def make_call(
  model: Model,
  settings: cost_schedule.Settings,
  mesh: jax.sharding.Mesh,
  *,
  stretch: int,
) -> Callable:
  """Compiles a stretch of steps of some arms.

  What an arm draws depends on the key, the arm and its step: it does what
  `neural_cleanse.make_call` over all classes does with it, whatever arms it
  shares its rounds with.

  Args:
    model: the classifier.
    settings: of the searches.
    mesh: the arms of a round are spread over it; their number must be a
      multiple of its size.
    stretch: steps a round.

  Returns:
    `(weights, key, images u8 [N,H,W,C], arms i32 [A], state [A]) -> state`.

  Raises:
    UserError: an argument is out of range.
  """
  run = neural_cleanse.make_stretch(model, settings, mesh, stretch)

  def call(weights, key, images, arms, state):
    return run(weights, key, images, arms, arms, state)

  return compiler.jit(call)


def play(
  call: Callable, arms: np.ndarray, free: bool, width: int, scan: Scan
) -> Scan:
  """One round; `scan`'s own arrays are written to.

  Args:
    call: `(arms i32 [width], state [width]) -> state`: what `make_call` gives,
      with its first three arguments bound.
    arms: int [A] from `choose`, A <= width.
    free: whether the bandit chose them.
    width: of every call, so that one program serves all: where there are fewer
      arms the last one is there several times, and comes to the same.
    scan: before the round.
  """
  rows = arms[np.minimum(np.arange(width), len(arms) - 1)]
  part = jax.tree.map(lambda x: x[rows], scan.state)
  part = jax.device_get(call(jnp.asarray(rows, jnp.int32), part))

  def put(whole, part):
    whole[rows] = part

  jax.tree.map(put, scan.state, part)
  scan.rounds[arms] += 1
  scan.first[arms] = np.where(
    np.isinf(scan.first[arms]), scan.state.best_norm[arms], scan.first[arms]
  )
  return scan._replace(
    number=scan.number + np.int32(1), free=scan.free + np.int32(free)
  )


def _generator(key: jax.Array, number: int) -> np.random.Generator:
  words = np.asarray(jax.random.key_data(key)).ravel().tolist()
  return np.random.default_rng([*words, number])
