"""A training batch, and the roles of its images."""

from typing import NamedTuple

import jax

# Roles of the images of a batch.
CLEAN = 0
POISONED = 1  # carries the trigger and the target label
COVER = 2  # carries the trigger and keeps its label


class Batch(NamedTuple):
  """Images with the labels that training gives them.

  Attributes:
    images: float32 [B,H,W,C] in [0,1].
    labels: int32 [B].
    roles: int8 [B], of `CLEAN`, `POISONED` and `COVER`.
  """

  images: jax.Array
  labels: jax.Array
  roles: jax.Array
