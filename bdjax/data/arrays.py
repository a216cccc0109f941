"""Operations on a dataset's arrays: digests, statistics, and the split."""

import hashlib

import numpy as np

from bdjax.data.base import Arrays, Dataset, Info, Splits
from bdjax.data.specs import Spec
from bdjax.errors import UserError


def digests(arrays: Arrays | Dataset) -> dict[str, str]:
  """Return the SHA-256 of each array's bytes, by its name.

  Labels of a whole dataset are hashed as uint8 where all of them fit, as their
  publishers store them, and otherwise as int32; those of a `Dataset` always
  as int32.
  """
  by_name = arrays._asdict()
  if isinstance(arrays, Arrays):
    labels = arrays.y_train, arrays.y_test
    fits = max(part.max(initial=0) for part in labels) < 256
    dtype = np.uint8 if fits else np.int32
    by_name |= {
      name: part.astype(dtype)
      for name, part in zip(("y_train", "y_test"), labels, strict=True)
    }
  return {
    name: hashlib.sha256(np.ascontiguousarray(array)).hexdigest()
    for name, array in by_name.items()
  }


def with_int32_labels(arrays: Arrays) -> Arrays:
  """Return the arrays with int32 labels."""
  return arrays._replace(
    y_train=arrays.y_train.astype(np.int32, copy=False),
    y_test=arrays.y_test.astype(np.int32, copy=False),
  )


def check(
  arrays: Arrays, spec: Spec, origin: str, remedy: str
) -> dict[str, str]:
  """Check arrays against what is known of them.

  Args:
    arrays: in canonical order.
    spec: shapes, number of classes and, where pinned, hashes.
    origin: where the bytes came from, for the error.
    remedy: what to do, for the end of the error.

  Returns:
    The digests, as `digests` gives them.

  Raises:
    UserError: these are not the bytes that the dataset is known by.
  """
  for images, labels in (arrays[:2], arrays[2:]):
    is_valid = (
      images.dtype == np.uint8
      and images.shape == (len(labels), *spec.shape)
      and len(labels) > 0
      and labels.min() >= 0
      and labels.max() < len(spec.class_names)
    )
    if not is_valid:
      raise UserError(
        f"{origin} holds images {images.dtype}{list(images.shape)} and "
        f"{len(labels)} labels, which must be uint8 images {list(spec.shape)} "
        f"and labels below {len(spec.class_names)}: {remedy}"
      )
  sha256 = digests(arrays)
  for name, expected in spec.sha256.items():
    if sha256[name] != expected:
      raise UserError(
        f"{origin} is corrupted: SHA-256 of {name} is {sha256[name][:12]}..., "
        f"not {expected[:12]}...: {remedy}"
      )
  return sha256


def channel_statistics(images: np.ndarray) -> tuple[tuple, tuple]:
  """Compute mean and standard deviation per channel, of images in [0,1].

  Args:
    images: uint8 [N,H,W,C].

  Returns:
    Two tuples of C floats, exact up to the last division: sums are integers.
  """
  total = np.zeros(images.shape[-1], np.int64)
  squares = np.zeros(images.shape[-1], np.int64)
  for start in range(0, len(images), 1000):  # a chunk's uint32 copy is small
    chunk = images[start : start + 1000].astype(np.uint32)
    total += chunk.sum((0, 1, 2), dtype=np.int64)
    squares += np.square(chunk).sum((0, 1, 2), dtype=np.int64)
  count = images.size // images.shape[-1]
  mean = total / count
  std = np.sqrt(squares / count - np.square(mean))
  return tuple((mean / 255).tolist()), tuple((std / 255).tolist())


def stratified(labels: np.ndarray, count: int, seed: int) -> np.ndarray:
  """Draw `count` indices, every class in its share of the whole.

  Shares are rounded by largest remainder, so that they add up to `count`.

  Args:
    labels: integers [N].
    count: how many, in [0, N].
    seed: in [0, 2**32). numpy freezes RandomState's stream for ever, which it
      does not do for Generator's: a split is the same in every version.

  Returns:
    int64 [count], ascending.
  """
  classes, sizes = np.unique(labels, return_counts=True)
  shares = sizes * count / len(labels)
  quotas = np.floor(shares).astype(np.int64)
  by_remainder = np.argsort(quotas - shares, kind="stable")
  quotas[by_remainder[: count - quotas.sum()]] += 1
  random = np.random.RandomState(seed)
  drawn = [
    random.permutation(np.flatnonzero(labels == label))[:quota]
    for label, quota in zip(classes, quotas, strict=True)
  ]
  return np.sort(np.concatenate(drawn))


def defender_count(total: int, fraction: float) -> int:
  """Return how many of `total` training images the defender gets.

  Raises:
    UserError: the fraction leaves the defender or the training nothing.
  """
  if not 0 <= fraction < 1:
    raise UserError(
      f"defender_fraction must be in [0, 1), such as 0.05 (got {fraction})"
    )
  count = max(round(fraction * total), 1) if fraction else 0
  if count >= total:
    raise UserError(
      f"defender_fraction must leave images to train on (got {fraction} of "
      f"{total}): use a smaller one, or more images"
    )
  return count


def split(arrays: Arrays, info: Info, fraction: float, seed: int) -> Splits:
  """Split the defender's images off the training images.

  Args:
    arrays: the whole dataset.
    info: passed through.
    fraction: share of the training images that the defender gets, in [0, 1).
    seed: in [0, 2**32).

  Returns:
    Splits whose train and defender are disjoint, stratified, and together
    all training images, each in the canonical order.

  Raises:
    UserError: fraction or seed is out of range.
  """
  if not 0 <= seed < 2**32:
    raise UserError(f"seed must be in [0, 2**32) (got {seed})")
  count = defender_count(len(arrays.y_train), fraction)
  chosen = np.zeros(len(arrays.y_train), bool)
  chosen[stratified(arrays.y_train, count, seed)] = True

  def part(mask):
    return Dataset(arrays.x_train[mask], arrays.y_train[mask])

  test = Dataset(arrays.x_test, arrays.y_test)
  return Splits(part(~chosen), part(chosen), test, info)
