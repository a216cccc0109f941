"""Long work in pieces, with a progress bar."""

import sys
from collections.abc import Callable, Iterable
from typing import Any

import jax
import numpy as np
import tqdm

PIECE = 500  # images between two steps of the bar


def progress(items: Iterable, unit: str) -> Iterable:
  """Goes through items; on a terminal, with a bar if it takes seconds."""
  return tqdm.tqdm(
    items,
    unit=unit,
    file=sys.stderr,
    disable=not sys.stderr.isatty(),
    dynamic_ncols=True,
    delay=3,
  )


def in_pieces(
  call: Callable[[jax.Array, slice], Any], key: jax.Array, total: int
) -> Any:
  """Calls for one stretch of rows after the other.

  Args:
    call: `(key, rows) -> tree of arrays` with as many rows.
    key: each piece has a key of its own.
    total: rows in all, at least 1.

  Returns:
    The tree of arrays of `total` rows, on the host.
  """
  found = [
    jax.device_get(
      call(
        jax.random.fold_in(key, number),
        slice(start, min(start + PIECE, total)),
      )
    )
    for number, start in enumerate(
      progress(range(0, total, PIECE), f"x{PIECE} images")
    )
  ]
  return jax.tree.map(lambda *parts: np.concatenate(parts), *found)
