"""Triggers, the places where they may lie, and attacks by patches.

A box is (top, left, bottom, right) in pixels, the last two exclusive.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bdjax.attacks.base import Attack
from bdjax.errors import UserError


class Trigger(NamedTuple):
  """A pattern and its opacity, laid over images; leading axes are batches.

  Attributes:
    mask: float32 [...,H,W,1] in [0,1], the opacity.
    pattern: float32 [...,H,W,C] in [0,1].
  """

  mask: jax.Array
  pattern: jax.Array


def stamp(trigger: Trigger, images: jax.Array) -> jax.Array:
  """Lay triggers over images: (1 - mask) * image + mask * pattern.

  Args:
    trigger: mask [...,H,W,1] and pattern [...,H,W,C], of the images' rank:
      one trigger an image. `vmap` with `in_axes=(None, 0)` for one in all.
    images: float32 [...,H,W,C] in [0,1].

  Returns:
    float32 [...,H,W,C] in [0,1], differentiable in the pattern.
  """
  return (1.0 - trigger.mask) * images + trigger.mask * trigger.pattern


def place(
  patch: jax.Array,
  corner: jax.Array,
  height: int,
  width: int,
  alpha: jax.Array | None = None,
) -> Trigger:
  """Put a patch at a place, as a trigger of the whole image.

  Args:
    patch: float32 [h,w,C] in [0,1].
    corner: int32 [2], its (top, left); the patch must lie inside the image.
    height: of the image.
    width: of the image.
    alpha: float32 [h,w,1], the opacity of the patch; None for 1.

  Returns:
    A trigger with the opacity as mask on the patch and 0 elsewhere,
    differentiable in the patch.
  """
  # One-hot matrices and not an indexed update: no scatter in either direction.
  down = jnp.arange(patch.shape[0], dtype=jnp.int32)
  across = jnp.arange(patch.shape[1], dtype=jnp.int32)
  rows = jax.nn.one_hot(corner[0] + down, height, axis=0)  # [H,h]
  cols = jax.nn.one_hot(corner[1] + across, width, axis=0)  # [W,w]
  # HIGHEST: a one-hot product is exact only if the values are not rounded to
  # bfloat16 on the way, as accelerators do by default.
  exact = jax.lax.Precision.HIGHEST
  if alpha is None:
    mask = jnp.einsum("hi,wj->hw", rows, cols)[..., None]
  else:
    mask = jnp.einsum("hi,ijc,wj->hwc", rows, alpha, cols, precision=exact)
  pattern = jnp.einsum("hi,ijc,wj->hwc", rows, patch, cols, precision=exact)
  return Trigger(mask, pattern)


def draw_corner(
  key: jax.Array, boxes: jax.Array, size: tuple[int, int]
) -> jax.Array:
  """Draw a uniform place for a patch, wholly inside one of a set of boxes.

  Args:
    key: a random key.
    boxes: int32 [L,4], each at least as large as the patch; one of them is
      drawn, all alike.
    size: (height, width) of the patch, in pixels.

  Returns:
    int32 [2], (top, left).
  """
  # 2: `randint` below draws from the key's first two children.
  which = jax.random.randint(jax.random.fold_in(key, 2), (), 0, len(boxes))
  box = boxes[which]
  room = box[2:] - jnp.array(size, jnp.int32) + 1
  return jax.random.randint(key, (2,), box[:2], room)


class Patch(NamedTuple):
  """A rectangular patch, drawn for each image and put at a drawn place.

  Attributes:
    draw: `(variables, key, index i32 [B]) -> float32 [B,h,w,C]` in [0,1].
    boxes: int32 [T,L,4], where a patch for each target may lie: in any of L
      boxes, each drawn as often as the others.
    size: (h, w), in pixels.
    alpha: float32 [h,w,1], the opacity; None for 1.
  """

  draw: Callable[[Any, jax.Array, jax.Array], jax.Array]
  boxes: jax.Array
  size: tuple[int, int]
  alpha: jax.Array | None = None

  def apply(self, variables, key, images, index):
    """Stamp a patch drawn anew on each image; as `Attack.apply`."""
    patch_key, place_key = jax.random.split(key)
    if self.size == images.shape[1:3]:
      trigger = self.draw_trigger(variables, patch_key, images, index)
      return stamp(trigger, images)
    patches = self.draw(variables, patch_key, index)
    keys = jax.random.split(place_key, index.shape[0])
    corners = jax.vmap(draw_corner, (0, 0, None))(
      keys, self.boxes[index], self.size
    )
    height, width = images.shape[1:3]
    triggers = jax.vmap(lambda p, c: place(p, c, height, width, self.alpha))(
      patches, corners
    )
    return stamp(triggers, images)

  def draw_trigger(self, variables, key, images, index):
    """Return the patches [B,h,w,C] as triggers; as `Attack.draw_trigger`."""
    del images
    patches = self.draw(variables, key, index)
    alpha = jnp.ones((*self.size, 1)) if self.alpha is None else self.alpha
    mask = jnp.broadcast_to(alpha, (*patches.shape[:3], 1))
    return Trigger(mask, patches)


def patch_attack(
  targets: tuple[int, ...], patch: Patch, **fields: Any
) -> Attack:
  """Return an attack by patches.

  Args:
    targets: target labels.
    patch: what is stamped, and where.
    **fields: of `Attack`, such as `init` or `sources`.
  """
  return Attack(
    targets=jnp.asarray(targets, jnp.int32),
    apply=patch.apply,
    draw_trigger=patch.draw_trigger,
    patch=patch,
    **fields,
  )


def whole_image(num: int, height: int, width: int) -> np.ndarray:
  """Return the whole image as the box of each label: int32 [num,1,4]."""
  return np.tile(np.array([0, 0, height, width], np.int32), (num, 1, 1))


def grid(num: int, height: int, width: int) -> np.ndarray:
  """Cut the image into one region a label (Salem et al. 2022, section 3).

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


def check_boxes(
  boxes: np.ndarray, size: tuple[int, int], height: int, width: int
) -> None:
  """Check that a patch fits into every box, and each box into the image.

  Args:
    boxes: int [T,L,4].
    size: (height, width) of the patch, in pixels.
    height: of the image.
    width: of the image.

  Raises:
    UserError: it does not.
  """
  text = f"{size[0]}x{size[1]}"
  if not (1 <= size[0] <= height and 1 <= size[1] <= width):
    raise UserError(
      f"trigger_size must be from 1 to {min(height, width)} (got {text} for "
      f"images of {height}x{width})"
    )
  for top, left, bottom, right in boxes.reshape(-1, 4).tolist():
    if top < 0 or left < 0 or bottom > height or right > width:
      raise UserError(
        f"locations must leave room for a {text} trigger in images of "
        f"{height}x{width} (got {top}:{left})"
      )
    if bottom - top < size[0] or right - left < size[1]:
      room = min(bottom - top, right - left)
      raise UserError(
        f"trigger_size must be at most {room}, the side of its region (got "
        f"{text}; {len(boxes)} regions in {height}x{width}); or use fewer "
        "target labels, or the attack cban anywhere"
      )
