"""The images of a scan, its rounds, and the test of the triggers it found."""

import contextlib
import functools
import logging
import pathlib
import time
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bdjax import compiler, metrics, sharding
from bdjax.attacks.patches import Trigger, stamp
from bdjax.batching import progress, to_float
from bdjax.checkpoints import Checkpoints
from bdjax.defenses import k_arm
from bdjax.defenses.neural_cleanse import searches
from bdjax.defenses.scan.settings import ScanSettings
from bdjax.models import Model, Weights

logger = logging.getLogger(__name__)

_MAX_SHIFT = 3  # pixels
_MAX_AUGMENTED = 1000  # images to search with
_MAX_HELD_OUT = 500
_MAX_WIDTH = 32  # classes of a round on a device


class ScanImages(NamedTuple):
  """A defender's images, split for a scan.

  Attributes:
    search: uint8 [M,H,W,C], those that triggers are optimised on, augmented.
    held_out: uint8 [T,H,W,C], unchanged.
    rows: int [T], which of the images were held out.
  """

  search: np.ndarray
  held_out: np.ndarray
  rows: np.ndarray


def split_images(
  images: np.ndarray, augmentations: int, seed: int
) -> ScanImages:
  """Hold a quarter of the images out, and augment the others.

  Args:
    images: uint8 [N,H,W,C], at least one; of fewer than four, none is held
      out, of very many 500.
    augmentations: copies of each image, while there are fewer than 1000 in
      all: unchanged, then shifted by up to 3 pixels with its edge repeated,
      and if in colour mirrored with probability 1/2.
    seed: of the draws.
  """
  generator = np.random.default_rng([seed, 1])
  order = generator.permutation(len(images))
  held = min(len(images) // 4, _MAX_HELD_OUT)
  search = images[np.sort(order[held:])]
  parts = [search]
  copies = max(1, min(augmentations, _MAX_AUGMENTED // len(search)))
  for _ in range(copies - 1):
    parts.append(np.stack([_augment(generator, x) for x in search]))
  rows = np.sort(order[:held])
  return ScanImages(np.concatenate(parts), images[rows], rows)


def _augment(generator, image):
  height, width, channels = image.shape
  pad = (_MAX_SHIFT, _MAX_SHIFT)
  top, left = generator.integers(0, 2 * _MAX_SHIFT + 1, 2)
  padded = np.pad(image, (pad, pad, (0, 0)), mode="edge")
  shifted = padded[top:, left:][:height, :width]
  mirrored = channels == 3 and generator.random() < 0.5
  return shifted[:, ::-1] if mirrored else shifted


def round_width(
  settings: ScanSettings,
  num_classes: int,
  image_shape: tuple[int, int, int],
  mesh: jax.sharding.Mesh,
) -> int:
  """Return the number of classes a round.

  Args:
    settings: of the scan.
    num_classes: K.
    image_shape: (H, W, C).
    mesh: the devices.

  Returns:
    At least 1: `class_batch` or its default, at most K, rounded up to a
    multiple of the devices.
  """
  fits = searches.max_searches(image_shape, settings.batch_size)
  width = settings.class_batch or min(_MAX_WIDTH, fits) * mesh.size
  return -(-min(width, num_classes) // mesh.size) * mesh.size


def search(
  keys: tuple[jax.Array, jax.Array],
  model: Model,
  weights: Weights,
  images: np.ndarray,
  reference: np.ndarray,
  settings: ScanSettings,
  mesh: jax.sharding.Mesh,
  path: pathlib.Path | None = None,
) -> tuple[k_arm.BanditState, float]:
  """Run the rounds of a scan, from the last one that was saved.

  Args:
    keys: of the initialisation, and of all that follows.
    model: the classifier.
    weights: of the classifier.
    images: uint8 [M,H,W,C], to search with.
    reference: bool [K], the sample.
    settings: of the scan.
    mesh: the classes of a round are spread over it.
    path: where checkpoints go; None keeps nothing.

  Returns:
    (the arms at the end, seconds, those before an interruption included).
  """
  init_key, key = keys
  width = round_width(settings, len(reference), images.shape[1:], mesh)
  call = k_arm.compile_search_steps(
    model, settings, mesh, steps_per_call=settings.round_steps
  )
  call = functools.partial(
    call, *sharding.replicate(mesh, (weights, key, images))
  )
  state = k_arm.init(init_key, len(reference), images.shape[1:])
  opened = Checkpoints(path, keep_best=0) if path else contextlib.nullcontext()
  with opened as checkpoints:
    kept = checkpoints.restore(state) if checkpoints else None
    seconds, saved = 0.0, time.perf_counter()
    if kept is not None:
      state, seconds = k_arm.writable(kept.state), kept.meta["seconds"]
      logger.info("resuming the scan at round %d", kept.step)
    begin = saved - seconds
    rounds = _max_rounds(settings, reference) - int(state.round_number)
    for _ in progress(range(rounds), "round"):
      if k_arm.finished(state, reference, settings):
        break
      arms, by_bandit = k_arm.choose(key, state, reference, settings, width)
      state = k_arm.run_round(call, arms, by_bandit, width, state)
      due = time.perf_counter() - saved >= settings.checkpoint_seconds
      if checkpoints and due:
        meta = {"seconds": time.perf_counter() - begin}
        # Copies: it is written in the background, while rounds go on.
        copy = jax.tree.map(np.copy, state)
        checkpoints.save(int(state.round_number), copy, {}, meta, 0)
        saved = time.perf_counter()
  return state, time.perf_counter() - begin


def _max_rounds(settings, reference):
  """Bound the rounds: each class its warm-up, then the sample one by one."""
  warmup = settings.warmup * len(reference)
  to_end = -(-settings.steps // settings.round_steps) * int(reference.sum())
  return warmup + to_end + settings.rounds + 1


def score_triggers(
  model: Model,
  weights: Weights,
  images: ScanImages,
  labels: np.ndarray | None,
  triggers: Trigger,
  classes: np.ndarray,
) -> dict[int, metrics.Score]:
  """Measure the success of triggers on images that they were not made from.

  Args:
    model: the classifier.
    weights: of the classifier.
    images: from `split_images`.
    labels: int32 [N] of all images, the true ones; None where they are not
      known, and predictions stand for them.
    triggers: of all K classes, mask [K,H,W,1] and pattern [K,H,W,C].
    classes: int, those to test.

  Returns:
    Class -> share of the images of other classes that the trigger leads to it,
    with Wilson's interval. A class that leaves no image is left out.
  """
  if not len(images.rows):
    return {}

  @compiler.jit
  def predict(weights, trigger, images):
    stamped = jax.vmap(stamp, (None, 0))(trigger, images)
    return model.apply(*weights, stamped)[0].argmax(-1)

  held_out = to_float(jnp.asarray(images.held_out))

  def predictions(mask, pattern):
    return np.asarray(predict(weights, Trigger(mask, pattern), held_out))

  if labels is None:
    mask, pattern = triggers.mask[0], triggers.pattern[0]
    held_out_labels = predictions(np.zeros_like(mask), pattern)
  else:
    held_out_labels = labels[images.rows]
  scores = {}
  for k in map(int, classes):
    hits = predictions(triggers.mask[k], triggers.pattern[k]) == k
    counts = held_out_labels != k
    if counts.any():
      share, number = float(hits[counts].mean()), int(counts.sum())
      scores[k] = metrics.proportion(share, number, "held-out images")
  return scores
