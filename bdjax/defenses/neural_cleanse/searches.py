"""Neural Cleanse: the searches of all classes in one program.

`search.py` is one of them, with a cost schedule of its own: nothing passes from
class to class. A restart is one more search for the same target label.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bdjax import batch_sizes, compiler, sharding
from bdjax.defenses.neural_cleanse import search
from bdjax.defenses.neural_cleanse.schedule import SearchSettings
from bdjax.defenses.neural_cleanse.search import SearchState
from bdjax.errors import UserError
from bdjax.models import Model
from bdjax.settings import check


class ReverseEngineered(NamedTuple):
  """The triggers that S searches found, on the host.

  Attributes:
    masks: float32 [S,H,W,1] in [0,1]; where the success rate was not reached,
      the last one tried, whose size says nothing of the class.
    patterns: float32 [S,H,W,C] in [0,1], likewise.
    norms: float32 [S], the mask's L1 norm in pixels; NaN where the success
      rate was not reached.
    reached: bool [S].
    asr: float32 [S], success rate over the images of the step that the mask
      was taken from.
    steps: int32 [S], until the search was over.
  """

  masks: np.ndarray
  patterns: np.ndarray
  norms: np.ndarray
  reached: np.ndarray
  asr: np.ndarray
  steps: np.ndarray


def init(
  key: jax.Array, num: int, image_shape: tuple[int, int, int]
) -> SearchState:
  """Initialise searches, masks and patterns uniform in [0,1].

  Args:
    key: a random key.
    num: S, classes times restarts.
    image_shape: (H, W, C).
  """
  init_one = functools.partial(search.init, image_shape=image_shape)
  return jax.vmap(init_one)(jax.random.split(key, num))


def max_searches(image_shape: tuple[int, int, int], batch_size: int) -> int:
  """Return how many searches a device should run at a time.

  On CPU one after the other is fastest: what is vectorised over searches has
  convolutions with a kernel for each.

  Args:
    image_shape: (H, W, C).
    batch_size: images of a mini-batch, at least 1.

  Returns:
    At least 1.
  """
  if jax.default_backend() == "cpu":
    return 1
  images = batch_sizes.max_batch_size(image_shape, gradient=True)
  return max(1, images // batch_size)


def search_steps(
  model: Model,
  settings: SearchSettings,
  mesh: jax.sharding.Mesh,
  steps_per_call: int,
) -> Callable:
  """Return a function, not yet compiled, that advances some of the searches.

  What a search draws depends on the key, its row and the step alone. Once all
  of them are frozen, they cost nothing.

  Args:
    model: the classifier.
    settings: of the searches.
    mesh: the searches are spread over it; their number must be a multiple of
      its size.
    steps_per_call: steps of each search, at least 1.

  Returns:
    `(weights, key, images u8 [N,H,W,C], rows i32 [A], targets i32 [A], state
    [A]) -> state`: `rows` are theirs among all searches.

  Raises:
    UserError: an argument is out of range, or there are no images.
  """
  check(settings)
  _check_positive("steps_per_call", steps_per_call)
  along_batch = sharding.along_batch(mesh)

  def run(weights, key, images, rows, targets, state):
    if not images.shape[0]:
      raise UserError("images must not be empty")

    def advance_one(row, target, state):
      search_key = jax.random.fold_in(key, row)
      return search.advance(
        model, settings, weights, search_key, images, target, state
      )

    step = functools.partial(jax.vmap(advance_one), rows, targets)

    def body(state, _):
      state = jax.lax.with_sharding_constraint(state, along_batch)
      done = state.frozen.all()
      return jax.lax.cond(done, lambda same: same, step, state), None

    return jax.lax.scan(body, state, length=steps_per_call)[0]

  return run


def compile_search_steps(
  model: Model,
  settings: SearchSettings,
  mesh: jax.sharding.Mesh,
  *,
  class_batch: int,
  steps_per_call: int,
) -> Callable:
  """Compile some steps of all searches.

  Randomness depends on the key, the search's row and the step alone: a search
  that is stopped after a call and resumed later equals an unbroken one, and is
  the same for every `class_batch`. Once all searches that run at a time are
  frozen, they cost nothing. All are frozen after `settings.steps` steps at the
  latest.

  Args:
    model: the classifier.
    settings: of the searches.
    mesh: searches that run at a time are spread over it.
    class_batch: searches at a time on each device, vectorised; 1 is fastest
      on a CPU, where then each stops at its own early stop.
    steps_per_call: steps of each search, at least 1.

  Returns:
    `(weights, key, images u8 [N,H,W,C], targets i32 [S], state [S]) -> state`.

  Raises:
    UserError: an argument is out of range, or there are no images.
  """
  _check_positive("class_batch", class_batch)
  run = search_steps(model, settings, mesh, steps_per_call)

  def call(weights, key, images, targets, state):
    def run_chunk(rows):
      chunk = jax.tree.map(lambda x: x[rows], state)
      return run(weights, key, images, rows, targets[rows], chunk)

    count = targets.shape[0]
    chunks = -(-count // (class_batch * mesh.size))
    size = -(-count // (chunks * mesh.size)) * mesh.size
    # The last chunk is filled up with the last search, cut off again below.
    rows = jnp.minimum(jnp.arange(chunks * size), count - 1)
    states = jax.lax.map(run_chunk, rows.reshape(chunks, size))
    return jax.tree.map(
      lambda x: x.reshape(chunks * size, *x.shape[2:])[:count], states
    )

  return compiler.jit(call)


def finish(state: SearchState) -> ReverseEngineered:
  """Fetch the triggers of searches [S] to the host."""
  last = jax.device_get(search.to_trigger(state.variables))
  state = jax.device_get(state)
  reached = np.isfinite(state.best_norm)
  masks, patterns = [
    np.where(reached[:, None, None, None], best, final)
    for best, final in zip(state.best, last, strict=True)
  ]
  norms = np.where(reached, masks.sum((1, 2, 3)), np.float32(np.nan))
  return ReverseEngineered(
    masks, patterns, norms, reached, state.asr, state.steps
  )


def _check_positive(name: str, value: int) -> None:
  if value < 1:
    raise UserError(f"{name} must be at least 1 (got {value})")
