"""K-Arm: which class to search next, when there are too many for all.

The search is Neural Cleanse's (`neural_cleanse/search.py`) and each class is an
arm of a bandit: a round advances one class by some steps. First every arm has
its warm-up; then, with probability epsilon, a random arm that is not yet done,
else the one with the largest expected reward.

Chosen here, where the paper is silent or its task another:
- an arm that has not reached the success rate has the reward 0;
- its first norm is the one after the round in which it first reached it, and
  its norm now the smallest so far, so that a reward is never negative;
- on an accelerator several arms are drawn for a round, without replacement;
- a random sample of the arms, drawn before any is searched, is searched to its
  end. The arms that the bandit prefers are the smallest of all, and say nothing
  of how large a mask usually is; the sample does
  (`neural_cleanse/reference_sample.py`);
- the scan ends when the smallest arms outside of the sample are done.

Left out: the paper's pre-screening of labels by the network's logits on clean
images, and its symmetric optimisation over pairs of source and target.

The state of all arms is on the host, so that a round costs what its arms cost.

References:
  Shen, Liu, Tao, An, Xu, Cheng, Ma and Zhang (2021), Backdoor Scanning for Deep
  Neural Networks through K-Arm Optimization, ICML, section 3.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bdjax import compiler
from bdjax.defenses.neural_cleanse import searches
from bdjax.defenses.neural_cleanse.schedule import SearchSettings
from bdjax.defenses.neural_cleanse.search import SearchState
from bdjax.models import Model
from bdjax.settings import setting


@dataclasses.dataclass(frozen=True)
class BanditSettings:
  """Settings of the choice of arms; the first three are the authors'."""

  warmup: int = setting(2, "Rounds that every class has.", low=1)
  epsilon: float = setting(
    0.3, "Probability of a random class in a round.", low=0, high=1
  )
  beta: float = setting(
    1e4, "Weight of a small mask in the reward, in pixels squared.", low=0
  )
  rounds: int = setting(
    2000, "Rounds after warm-up and reference sample, at most.", low=0
  )
  converged: int = setting(
    24, "Number of smallest masks that must be done to end the scan.", low=1
  )


class BanditState(NamedTuple):
  """The K arms on the host, between two rounds.

  Attributes:
    searches: states [K], NumPy arrays that `run_round` writes to.
    first_norm: float32 [K], pixels, the norm after the round in which an arm
      first reached the success rate; inf before.
    rounds: int32 [K], that each arm has had.
    round_number: int32 scalar, rounds done.
    bandit_rounds: int32 scalar, those of them in which the bandit chose.
  """

  searches: SearchState
  first_norm: np.ndarray
  rounds: np.ndarray
  round_number: np.ndarray
  bandit_rounds: np.ndarray


def init(
  key: jax.Array, num: int, image_shape: tuple[int, int, int]
) -> BanditState:
  """Initialise the arms; their searches as those of Neural Cleanse.

  Args:
    key: a random key.
    num: K, the number of classes.
    image_shape: (H, W, C).
  """
  states = jax.jit(searches.init, static_argnums=(1, 2))(key, num, image_shape)
  zero = np.zeros((), np.int32)
  first_norm = np.full(num, np.inf, np.float32)
  rounds = np.zeros(num, np.int32)
  return BanditState(writable(states), first_norm, rounds, zero, zero)


def writable(tree: Any) -> Any:
  """Copy arrays, for instance of a checkpoint, to NumPy arrays."""
  return jax.tree.map(np.array, jax.device_get(tree))


def draw_reference(key: jax.Array, num: int, size: int) -> np.ndarray:
  """Draw the sample that is searched to its end: bool [K], all if K <= size."""
  drawn = _generator(key, 0).permutation(num)[:size]
  return np.isin(np.arange(num), drawn)


def reward(
  first_norm: np.ndarray, norms: np.ndarray, rounds: np.ndarray, beta: float
) -> np.ndarray:
  """Compute the expected reward of another round of each arm.

  (first norm - norm now) / rounds + beta / norm now.

  Args:
    first_norm: float [K], pixels; inf for an arm that has not reached the
      success rate.
    norms: float [K], pixels, likewise.
    rounds: int [K], at least 1 where the norm is finite.
    beta: pixels squared.

  Returns:
    float64 [K], at least 0; 0 where the success rate is not reached.

  References:
    Shen et al. (2021), section 3.
  """
  reached = np.isfinite(norms)
  now = np.where(reached, norms, 1.0).astype(np.float64)
  decrease = np.where(reached, first_norm, 1.0) - now
  # A mask may shrink to nothing, where the class needs no trigger.
  size = np.maximum(now, 1e-6)
  rewards = decrease / np.maximum(rounds, 1) + beta / size
  return np.where(reached, rewards, 0.0)


def choose(
  key: jax.Array,
  state: BanditState,
  reference: np.ndarray,
  settings: BanditSettings,
  width: int = 1,
) -> tuple[np.ndarray, bool]:
  """Choose the arms of the next round, among those that are not done.

  The draw depends on the key and the number of the round alone, so that a
  scan that is stopped and resumed equals an unbroken one.

  Args:
    key: of the scan.
    state: not `finished`.
    reference: bool [K], the sample.
    settings: how to choose.
    width: arms a round, at most.

  Returns:
    (int [A] without repeats, 1 <= A <= width; whether the bandit chose them,
    and not warm-up or sample).
  """
  active = ~state.searches.frozen
  warming_up = active & (state.rounds < settings.warmup)
  for waiting in (warming_up, active & reference):
    if waiting.any():
      arms = np.flatnonzero(waiting)
      order = np.argsort(state.rounds[arms], kind="stable")
      return arms[order[:width]], False
  generator = _generator(key, int(state.round_number) + 1)
  rewards = reward(
    state.first_norm, state.searches.best_norm, state.rounds, settings.beta
  )
  left, chosen = list(np.flatnonzero(active)), []
  while left and len(chosen) < width:
    if generator.random() < settings.epsilon:
      position = int(generator.integers(len(left)))
    else:
      position = int(np.argmax(rewards[left]))
    chosen.append(left.pop(position))
  return np.array(chosen), True


def finished(
  state: BanditState, reference: np.ndarray, settings: BanditSettings
) -> bool:
  """Tell whether the scan is over: see `BanditSettings`, and this module.

  Args:
    state: between two rounds.
    reference: bool [K], the sample.
    settings: how arms are chosen.
  """
  active = ~state.searches.frozen
  if (active & ((state.rounds < settings.warmup) | reference)).any():
    return False
  others = np.flatnonzero(~reference)
  order = np.argsort(state.searches.best_norm[others], kind="stable")
  smallest = others[order[: settings.converged]]
  used_up = state.bandit_rounds >= settings.rounds
  return bool(used_up or not active[smallest].any())


def compile_search_steps(
  model: Model,
  settings: SearchSettings,
  mesh: jax.sharding.Mesh,
  *,
  steps_per_call: int,
) -> Callable:
  """Compile a round's steps of some arms.

  What an arm draws depends on the key, the arm and its step: it does what
  `searches.compile_search_steps` over all classes does with it, whatever arms
  it shares its rounds with.

  Args:
    model: the classifier.
    settings: of the searches.
    mesh: the arms of a round are spread over it; their number must be a
      multiple of its size.
    steps_per_call: steps of each arm in a round.

  Returns:
    `(weights, key, images u8 [N,H,W,C], arms i32 [A], state [A]) -> state`.

  Raises:
    UserError: an argument is out of range.
  """
  run = searches.search_steps(model, settings, mesh, steps_per_call)

  def call(weights, key, images, arms, state):
    return run(weights, key, images, arms, arms, state)

  return compiler.jit(call)


def run_round(
  call: Callable,
  arms: np.ndarray,
  by_bandit: bool,
  width: int,
  state: BanditState,
) -> BanditState:
  """Run one round; `state`'s own arrays are written to.

  Args:
    call: `(arms i32 [width], state [width]) -> state`: the function from
      `compile_search_steps`, with its first three arguments bound.
    arms: int [A] from `choose`, A <= width.
    by_bandit: whether the bandit chose them.
    width: of every call, so that one program serves all: where there are fewer
      arms the last one is repeated, with the same outcome.
    state: before the round.
  """
  rows = arms[np.minimum(np.arange(width), len(arms) - 1)]
  part = jax.tree.map(lambda x: x[rows], state.searches)
  part = jax.device_get(call(jnp.asarray(rows, jnp.int32), part))

  def put(whole, part):
    whole[rows] = part

  jax.tree.map(put, state.searches, part)
  state.rounds[arms] += 1
  first_norm = state.first_norm
  first_norm[arms] = np.where(
    np.isinf(first_norm[arms]), state.searches.best_norm[arms], first_norm[arms]
  )
  return state._replace(
    round_number=state.round_number + np.int32(1),
    bandit_rounds=state.bandit_rounds + np.int32(by_bandit),
  )


def _generator(key: jax.Array, number: int) -> np.random.Generator:
  """Return NumPy's generator of a key and a number."""
  words = np.asarray(jax.random.key_data(key)).ravel().tolist()
  return np.random.default_rng([*words, number])
