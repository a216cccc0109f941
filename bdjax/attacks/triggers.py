"""Triggers, the places they may stand in, and the stamp.

A box is (top, left, bottom, right) in pixels, the last two exclusive.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bdjax.errors import UserError


class Trigger(NamedTuple):
  """What is laid over an image; leading axes are batches.

  Attributes:
    mask: float32 [...,H,W,1] in [0,1], the opacity.
    pattern: float32 [...,H,W,C] in [0,1].
  """

  mask: jax.Array
  pattern: jax.Array


def stamp(trigger: Trigger, images: jax.Array) -> jax.Array:
  """Lays triggers over images: (1 - mask) * image + mask * pattern.

  Args:
    trigger: mask [...,H,W,1] and pattern [...,H,W,C], of the images' rank:
      one trigger an image. `vmap` with `in_axes=(None, 0)` for one in all.
    images: float32 [...,H,W,C] in [0,1].

  Returns:
    float32 [...,H,W,C] in [0,1], differentiable in the pattern.
  """
  return (1.0 - trigger.mask) * images + trigger.mask * trigger.pattern


def place(
  patch: jax.Array, corner: jax.Array, height: int, width: int
) -> Trigger:
  """A patch put at a place, as a trigger of the whole image.

  Args:
    patch: float32 [s,s,C] in [0,1].
    corner: int32 [2], its (top, left); the patch must lie inside the image.
    height: of the image.
    width: of the image.

  Returns:
    A trigger with mask 1 on the patch and 0 elsewhere, differentiable in the
    patch.
  """
  side = jnp.arange(patch.shape[0], dtype=jnp.int32)
  # One-hot matrices and not an indexed update: no scatter in either direction.
  rows = jax.nn.one_hot(corner[0] + side, height, axis=0)  # [H,s]
  cols = jax.nn.one_hot(corner[1] + side, width, axis=0)  # [W,s]
  mask = jnp.einsum("hi,wj->hw", rows, cols)[..., None]
  # HIGHEST: a one-hot product is exact only if the values are not rounded to
  # bfloat16 on the way, as accelerators do by default.
  pattern = jnp.einsum(
    "hi,ijc,wj->hwc", rows, patch, cols, precision=jax.lax.Precision.HIGHEST
  )
  return Trigger(mask, pattern)


def draw_corner(key: jax.Array, boxes: jax.Array, size: int) -> jax.Array:
  """A uniform place for a patch, wholly inside one of a set of boxes.

  Args:
    key: a random key.
    boxes: int32 [L,4], each at least `size` in both directions; one of them
      is drawn, all alike.
    size: side of the patch in pixels.

  Returns:
    int32 [2], (top, left).
  """
  # 2: `randint` below draws from the key's first two children.
  which = jax.random.randint(jax.random.fold_in(key, 2), (), 0, len(boxes))
  box = boxes[which]
  return jax.random.randint(key, (2,), box[:2], box[2:] - size + 1)


def whole_image(num: int, height: int, width: int) -> np.ndarray:
  """The same box for all of `num` labels: the image. int32 [num,1,4]."""
  return np.tile(np.array([0, 0, height, width], np.int32), (num, 1, 1))


def grid(num: int, height: int, width: int) -> np.ndarray:
  """Cuts the image into one region a label (Salem et al. 2022, section 3).

  The regions are disjoint, row by row: `num` = rows x columns with rows the
  largest divisor up to the square root (ten regions: two rows of five), and
  rows for columns in an upright image. A prime above 3 has no such grid, so
  it takes the next number's and leaves the last cell empty.

  Args:
    num: labels, at least 1.
    height: of the image, in pixels.
    width: of the image, in pixels.

  Returns:
    int32 [num,1,4] boxes.
  """

  def rows_of(n):
    return max(d for d in range(1, int(n**0.5) + 1) if n % d == 0)

  cells = num + 1 if num > 3 and rows_of(num) == 1 else num
  rows = rows_of(cells)
  cols = cells // rows
  if height > width:
    rows, cols = cols, rows
  top = np.arange(rows + 1) * height // rows
  left = np.arange(cols + 1) * width // cols
  boxes = [
    (top[i], left[j], top[i + 1], left[j + 1])
    for i in range(rows)
    for j in range(cols)
  ]
  return np.array(boxes[:num], np.int32)[:, None]


def check_boxes(boxes: np.ndarray, size: int, height: int, width: int) -> None:
  """Checks that a patch fits into every box, and each box into the image.

  Args:
    boxes: int [T,L,4].
    size: side of the patch in pixels.
    height: of the image.
    width: of the image.

  Raises:
    UserError: it does not.
  """
  if not 1 <= size <= min(height, width):
    raise UserError(
      f"a trigger of {size}x{size} does not fit into images of "
      f"{height}x{width}; take trigger_size 1 to {min(height, width)}"
    )
  for top, left, bottom, right in boxes.reshape(-1, 4).tolist():
    if top < 0 or left < 0 or bottom > height or right > width:
      raise UserError(
        f"location {top}:{left} leaves no room for a {size}x{size} trigger in "
        f"images of {height}x{width}"
      )
    room = min(bottom - top, right - left)
    if room < size:
      raise UserError(
        f"a trigger of {size}x{size} does not fit into its region of "
        f"{bottom - top}x{right - left} ({len(boxes)} regions in "
        f"{height}x{width}); take trigger_size up to {room}, fewer target "
        "labels, or locations=anywhere with cban"
      )
