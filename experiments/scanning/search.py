"""How a scan is run: its images, its rounds, and the trial of what it found."""

import functools
import pathlib
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bdjax import compiler, metrics, sharding
from bdjax.attacks.triggers import Trigger, stamp
from bdjax.checkpoints import Checkpoints
from bdjax.defenses import k_arm, neural_cleanse
from experiments.common.runner import Report
from experiments.defending import pieces
from experiments.scanning.case import Case

_SHIFT = 3  # pixels
_ENOUGH = 1000  # images to search with
_MOST_HELD_OUT = 500


class Pictures(NamedTuple):
  """A defender's images, cut for a scan.

  Attributes:
    search: uint8 [M,H,W,C], those that triggers are made on, augmented.
    held_out: uint8 [T,H,W,C], as they are.
    rows: int [T], which of the images were held out.
  """

  search: np.ndarray
  held_out: np.ndarray
  rows: np.ndarray


def prepare(images: np.ndarray, augmentations: int, seed: int) -> Pictures:
  """Holds a quarter of the images out, and augments the others.

  Args:
    images: uint8 [N,H,W,C]; of fewer than four, none is held out, of very many
      500.
    augmentations: each image so many times, while there are fewer than 1000 in
      all: as it is, then shifted by up to 3 pixels with its edge repeated, and
      if in colour mirrored by chance.
    seed: of the draws.
  """
  generator = np.random.default_rng([seed, 1])
  order = generator.permutation(len(images))
  held = min(len(images) // 4, _MOST_HELD_OUT)
  search = images[np.sort(order[held:])]
  parts = [search]
  forms = max(1, min(augmentations, _ENOUGH // len(search)))
  for _ in range(forms - 1):
    parts.append(np.stack([_augment(generator, x) for x in search]))
  rows = np.sort(order[:held])
  return Pictures(np.concatenate(parts), images[rows], rows)


def _augment(generator, image):
  height, width, channels = image.shape
  ends = ((_SHIFT, _SHIFT), (_SHIFT, _SHIFT), (0, 0))
  top, left = generator.integers(0, 2 * _SHIFT + 1, 2)
  moved = np.pad(image, ends, mode="edge")[top:, left:][:height, :width]
  mirrored = channels == 3 and generator.random() < 0.5
  return moved[:, ::-1] if mirrored else moved


def settings(kind: type, config: Any) -> Any:
  """A NamedTuple of settings, as far as they are flags."""
  names = [name for name in kind._fields if hasattr(config, name)]
  return kind(**{name: getattr(config, name) for name in names})


def width(
  config: Any, num_classes: int, image_shape: tuple[int, int, int]
) -> int:
  """Classes a round: a multiple of the devices.

  Args:
    config: `experiments.scan.Config`.
    num_classes: K; not many more are taken.
    image_shape: (H, W, C).

  Returns:
    At least 1: `--class_batch` or its default, at most K, rounded up to a
    multiple of the devices.
  """
  devices = sharding.make_mesh().size
  fit = neural_cleanse.searches_at_once(image_shape, config.batch_size)
  each = min(32, fit)
  wanted = min(config.class_batch or each * devices, num_classes)
  return -(-wanted // devices) * devices


def search(
  config: Any,
  case: Case,
  images: np.ndarray,
  reference: np.ndarray,
  keys: tuple[jax.Array, jax.Array],
  directory: pathlib.Path,
  report: Report,
) -> tuple[k_arm.Scan, float]:
  """Goes on from the last round that was saved, to the end.

  Args:
    config: `experiments.scan.Config`, with `class_batch` from `width`.
    case: what is scanned.
    images: uint8 [M,H,W,C], to search with.
    reference: bool [K], the sample.
    keys: of the start, and of what follows.
    directory: of the results; `checkpoints/search` goes there.
    report: takes lines of progress.

  Returns:
    (the scan at its end, seconds of all starts).
  """
  start_key, key = keys
  mesh = sharding.make_mesh()
  width = config.class_batch
  call = k_arm.make_call(
    case.model,
    settings(neural_cleanse.Settings, config),
    mesh,
    stretch=config.round_steps,
  )
  call = functools.partial(
    call, *sharding.replicate(mesh, (case.weights, key, images))
  )
  bandit = settings(k_arm.Bandit, config)
  scan = k_arm.start(start_key, len(reference), images.shape[1:])
  with Checkpoints(
    directory / "checkpoints" / "search", keep_best=0
  ) as checkpoints:
    kept = checkpoints.restore(scan, report=report)
    spent, saved = 0.0, time.perf_counter()
    if kept is not None:
      scan, spent = k_arm.writable(kept.state), kept.meta["seconds"]
      report(f"going on from round {kept.step}")
    begin = saved - spent
    most = _most_rounds(config, reference, width) - int(scan.number)
    for _ in pieces.progress(range(most), "round"):
      if k_arm.finished(scan, reference, bandit):
        break
      arms, free = k_arm.choose(key, scan, reference, bandit, width)
      scan = k_arm.play(call, arms, free, width, scan)
      if time.perf_counter() - saved >= config.checkpoint_seconds:
        spent = time.perf_counter() - begin
        # Copies: it is written in the background, while rounds go on.
        copy = jax.tree.map(np.copy, scan)
        checkpoints.save(int(scan.number), copy, {}, {"seconds": spent}, 0)
        saved = time.perf_counter()
  return scan, time.perf_counter() - begin


def _most_rounds(config, reference, width):
  """A bound: each class its warm-up, then the sample one by one."""
  warm = config.warmup * len(reference)
  ends = -(-config.steps // config.round_steps) * int(reference.sum())
  return warm + ends + config.rounds + 1


def try_held_out(
  case: Case, pictures: Pictures, triggers: Trigger, classes: np.ndarray
) -> dict[int, metrics.Score]:
  """Success of triggers on images that they were not made from.

  Args:
    case: what is scanned.
    pictures: from `prepare`.
    triggers: of all K classes, mask [K,H,W,1] and pattern [K,H,W,C].
    classes: int, those to try.

  Returns:
    By class, with Wilson's interval. Only images of other classes count, by
    what the network says where labels are not known; a class that leaves none
    is left out.
  """
  if not len(pictures.rows):
    return {}

  @compiler.jit
  def predict(weights, trigger, images):
    stamped = jax.vmap(stamp, (None, 0))(trigger, images)
    return case.model.apply(*weights, stamped, False)[0].argmax(-1)

  images = jnp.asarray(pictures.held_out, jnp.float32) / 255.0

  def predicted(mask, pattern):
    return np.asarray(predict(case.weights, Trigger(mask, pattern), images))

  if case.labels is None:
    mask, pattern = triggers.mask[0], triggers.pattern[0]
    labels = predicted(np.zeros_like(mask), pattern)
  else:
    labels = case.labels[pictures.rows]
  out = {}
  for k in map(int, classes):
    hits = predicted(triggers.mask[k], triggers.pattern[k]) == k
    counts = labels != k
    if counts.any():
      score = metrics.proportion(float(hits[counts].mean()), int(counts.sum()))
      out[k] = score._replace(over="held-out images")
  return out
