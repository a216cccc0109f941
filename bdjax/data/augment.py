"""Random crop and flip, on the device, inside the jitted step."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from bdjax.batch import Batch
from bdjax.errors import UserError


def crop(key: jax.Array, images: jax.Array, pad: int = 2) -> jax.Array:
  """Shift each image by up to `pad` pixels, without a flip: for digits.

  The border is filled by reflection.

  Args:
    key: a random key.
    images: [B,H,W,C], any dtype, H and W above `pad`.
    pad: the largest shift in pixels, >= 0.

  Returns:
    [B,H,W,C], same dtype.
  """
  batch, height, width, channels = images.shape
  corners = jax.random.randint(key, (batch, 2), 0, 2 * pad + 1)
  padded = jnp.pad(
    images, ((0, 0), (pad, pad), (pad, pad), (0, 0)), mode="reflect"
  )

  def crop_image(image, corner):
    return jax.lax.dynamic_slice(
      image, (corner[0], corner[1], 0), (height, width, channels)
    )

  return jax.vmap(crop_image)(padded, corners)


def crop_and_flip(key: jax.Array, images: jax.Array, pad: int = 4) -> jax.Array:
  """Shift each image by up to `pad` pixels and flip half of them.

  Arguments and result are those of `crop`. A flip is from left to right.
  """
  crop_key, flip_key = jax.random.split(key)
  images = crop(crop_key, images, pad)
  flips = jax.random.bernoulli(flip_key, 0.5, images.shape[:1])
  return jnp.where(flips[:, None, None, None], images[:, :, ::-1], images)


def alternate(key: jax.Array, epoch: jax.Array, images: jax.Array) -> jax.Array:
  """Flip each image in every other epoch.

  A coin per image decides which are flipped in the first epoch. Any two epochs
  so show an image both ways, where independent coins show it the same way
  again in half of them.

  Args:
    key: of the run, the same in all epochs.
    epoch: int32 scalar, >= 0.
    images: [N,H,W,C], any dtype, the whole training set.

  Returns:
    [N,H,W,C], same dtype.

  References:
    K. Jordan (2024), 94% on CIFAR-10 in 3.29 Seconds on a Single GPU,
    section 3 (alternating flip).
  """
  coins = jax.random.bernoulli(key, 0.5, images.shape[:1])
  flipped = coins ^ (epoch % 2 == 1)
  return jnp.where(flipped[:, None, None, None], images[:, :, ::-1], images)


_BY_NAME = {
  "none": lambda key, images: images,
  "crop": crop,
  "crop_flip": crop_and_flip,
  "crop_alternate": crop,  # and `alternate` at the start of an epoch
}
NAMES = tuple(_BY_NAME)


def augment(name: str) -> Callable[[jax.Array, Batch], Batch]:
  """Return an augmentation of batches.

  Args:
    name: `none`, `crop`, `crop_flip` or `crop_alternate`; the last crops here
      and flips by `alternate` at the start of an epoch.

  Returns:
    `(key, batch) -> batch`, with labels and roles unchanged.

  Raises:
    UserError: there is none of that name.
  """
  if name not in _BY_NAME:
    raise UserError(
      f"augmentation must be one of {', '.join(NAMES)} (got {name!r})"
    )

  def transform(key: jax.Array, batch: Batch) -> Batch:
    return batch._replace(images=_BY_NAME[name](key, batch.images))

  return transform
