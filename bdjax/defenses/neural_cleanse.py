"""Neural Cleanse: for each class, the smallest trigger that leads to it.

Wang, Yao, Shan, Li, Viswanath, Zheng and Zhao (2019), "Neural Cleanse:
Identifying and Mitigating Backdoor Attacks in Neural Networks", section IV, and
the authors' code (`visualizer.py`). x' = (1 - m) x + m p, with m and p the
tanh of free variables brought to [0,1]; the loss is the cross-entropy towards
the target plus cost * |m|_1. As in their code, all images are led to the
target, those of its own class among them: the success rate is a little higher
than over the others alone. Labels are not asked for.

`trigger_search.py` is one search, of one target from one start, with a cost
schedule of its own (`cost_schedule.py`): nothing passes from class to class.
Here are all of them at once; `anomaly.py` judges the masks that come out.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bdjax import compiler, memory, sharding
from bdjax.defenses import cost_schedule
from bdjax.defenses.cost_schedule import Settings
from bdjax.defenses.trigger_search import State, advance, start, trigger_of
from bdjax.errors import UserError
from bdjax.models import Model

__all__ = ["Settings", "State", "Reversed", "init", "make_call", "finish"]


class Reversed(NamedTuple):
  """The outcome of K searches, on the host.

  Attributes:
    masks: float32 [K,H,W,1] in [0,1]; where the threshold was not reached,
      the last one tried, whose size says nothing of the class.
    patterns: float32 [K,H,W,C] in [0,1], likewise.
    norms: float32 [K], the mask's L1 norm in pixels; NaN where the threshold
      was not reached.
    reached: bool [K].
    asr: float32 [K], success rate over the images of the step that the mask
      was taken from.
    steps: int32 [K], until the search was over.
  """

  masks: np.ndarray
  patterns: np.ndarray
  norms: np.ndarray
  reached: np.ndarray
  asr: np.ndarray
  steps: np.ndarray


def init(key: jax.Array, num: int, image_shape: tuple[int, int, int]) -> State:
  """Searches before their first step, mask and pattern uniform in [0,1].

  Args:
    key: a random key.
    num: K, classes times restarts.
    image_shape: (H, W, C).
  """
  fresh = functools.partial(start, image_shape=image_shape)
  return jax.vmap(fresh)(jax.random.split(key, num))


def searches_at_once(image_shape: tuple[int, int, int], batch_size: int) -> int:
  """How many searches a device runs at a time, of mini-batches of a size.

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
  images = memory.images_at_once(image_shape, gradient=True)
  return max(1, images // batch_size)


def make_stretch(
  model: Model,
  settings: Settings,
  mesh: jax.sharding.Mesh,
  stretch: int,
) -> Callable:
  """A stretch of steps of some of the searches, to be compiled.

  What a search draws depends on the key, its place and the step alone. Once
  all of them are frozen, they cost nothing.

  Args:
    model: the classifier.
    settings: of the searches.
    mesh: the searches are spread over it; their number is a multiple of its
      size.
    stretch: steps.

  Returns:
    `(weights, key, images u8 [N,H,W,C], places i32 [A], targets i32 [A], state
    [A]) -> state`: `places` are theirs among all searches.

  Raises:
    UserError: an argument is out of range, or there are no images.
  """
  cost_schedule.check(settings)
  if stretch < 1:
    raise UserError(f"stretch is {stretch}; take at least 1")
  cut = sharding.along_batch(mesh)

  def run(weights, key, images, places, targets, state):
    if not images.shape[0]:
      raise UserError("there are no images to search with; take at least one")

    def one_search(place, target, state):
      search_key = jax.random.fold_in(key, place)
      return advance(
        model, settings, weights, search_key, images, target, state
      )

    step = functools.partial(jax.vmap(one_search), places, targets)

    def body(state, _):
      state = jax.lax.with_sharding_constraint(state, cut)
      done = state.frozen.all()
      return jax.lax.cond(done, lambda same: same, step, state), None

    return jax.lax.scan(body, state, length=stretch)[0]

  return run


def make_call(
  model: Model,
  settings: Settings,
  mesh: jax.sharding.Mesh,
  *,
  class_batch: int,
  stretch: int,
) -> Callable:
  """Compiles a stretch of steps of all searches.

  Randomness depends on the key, the search's place and the step alone: a
  search that is stopped after a call and gone on with later equals an
  unbroken one, and is the same for every `class_batch`. Once all searches
  that run at a time are frozen, they cost nothing. All are frozen after
  `settings.steps` steps at the latest.

  Args:
    model: the classifier.
    settings: of the searches.
    mesh: searches that run at a time are spread over it.
    class_batch: searches at a time on each device, vectorised; 1 is fastest
      on a CPU, where then each stops at its own early stop.
    stretch: steps a call.

  Returns:
    `(weights, key, images u8 [N,H,W,C], targets i32 [K], state [K]) -> state`.
    A restart is one more search for the same target.

  Raises:
    UserError: an argument is out of range, or there are no images.
  """
  if class_batch < 1:
    raise UserError(f"class_batch is {class_batch}; take at least 1")
  run = make_stretch(model, settings, mesh, stretch)

  def call(weights, key, images, targets, state):
    def one_chunk(places):
      chunk = jax.tree.map(lambda x: x[places], state)
      return run(weights, key, images, places, targets[places], chunk)

    count = targets.shape[0]
    chunks = -(-count // (class_batch * mesh.size))
    size = -(-count // (chunks * mesh.size)) * mesh.size
    # The last chunk is filled up with the last search, cut off again below.
    places = jnp.minimum(jnp.arange(chunks * size), count - 1)
    out = jax.lax.map(one_chunk, places.reshape(chunks, size))
    return jax.tree.map(
      lambda x: x.reshape(chunks * size, *x.shape[2:])[:count], out
    )

  return compiler.jit(call)


def finish(state: State) -> Reversed:
  """What the searches [K] have found, fetched to the host."""
  last = jax.device_get(trigger_of(state.variables))
  state = jax.device_get(state)
  reached = np.isfinite(state.best_norm)
  masks, patterns = [
    np.where(reached[:, None, None, None], best, final)
    for best, final in zip(state.best, last, strict=True)
  ]
  norms = np.where(reached, masks.sum((1, 2, 3)), np.float32(np.nan))
  return Reversed(masks, patterns, norms, reached, state.asr, state.steps)
