"""The types of `bdjax.data`; import them from there."""

from typing import NamedTuple

import numpy as np

from bdjax.errors import UserError


class Unavailable(UserError):
  """A source cannot be reached; another one may be."""


class Dataset(NamedTuple):
  """Labelled images at rest.

  Attributes:
    images: uint8 [N,H,W,C].
    labels: int32 [N], in [0, num_classes).
  """

  images: np.ndarray
  labels: np.ndarray


class Info(NamedTuple):
  """A dataset's facts, and where its bytes really came from.

  Attributes:
    name: one of `NAMES`, or the stem of the user's `.npz` file.
    num_classes: number of labels.
    class_names: one name a label.
    source: 'builtin', 'npm', 'tfds' (downloaded by bdjax through TFDS),
      'tfds-prepared' (a TFDS directory that somebody else prepared), 'idx'
      or 'file'.
    sha256: of x_train, y_train, x_test and y_test in canonical order, before
      any split; see `arrays.digests`.
    mean: per channel, of x_train in [0,1].
    std: per channel, of x_train in [0,1].
  """

  name: str
  num_classes: int
  class_names: tuple[str, ...]
  source: str
  sha256: dict[str, str]
  mean: tuple[float, ...]
  std: tuple[float, ...]


class Splits(NamedTuple):
  """Three disjoint datasets: training, the defender's own, and test."""

  train: Dataset
  defender: Dataset
  test: Dataset
  info: Info


class Arrays(NamedTuple):
  """A dataset as published: canonical order, not yet split.

  Attributes:
    x_train: uint8 [N,H,W,C].
    y_train: int32 [N].
    x_test: uint8 [M,H,W,C].
    y_test: int32 [M].
  """

  x_train: np.ndarray
  y_train: np.ndarray
  x_test: np.ndarray
  y_test: np.ndarray
