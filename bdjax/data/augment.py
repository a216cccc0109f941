"""Random crop and flip, on the device, inside the jitted step."""

import jax
import jax.numpy as jnp

from bdjax.errors import UserError


def crop(key: jax.Array, images: jax.Array, pad: int = 2) -> jax.Array:
  """Shifts each image by up to `pad` pixels, for digits: never mirrored.

  The border is filled by reflection.

  Args:
    key: a random key.
    images: [B,H,W,C], any dtype, H and W above `pad`.
    pad: the largest shift, in pixels.

  Returns:
    [B,H,W,C], same dtype.
  """
  batch, height, width, channels = images.shape
  corners = jax.random.randint(key, (batch, 2), 0, 2 * pad + 1)
  padded = jnp.pad(
    images, ((0, 0), (pad, pad), (pad, pad), (0, 0)), mode="reflect"
  )

  def one(image, corner):
    return jax.lax.dynamic_slice(
      image, (corner[0], corner[1], 0), (height, width, channels)
    )

  return jax.vmap(one)(padded, corners)


def crop_and_flip(key: jax.Array, images: jax.Array, pad: int = 4) -> jax.Array:
  """Shifts each image by up to `pad` pixels and mirrors half of them.

  Args and result as for `crop`.
  """
  crop_key, flip_key = jax.random.split(key)
  images = crop(crop_key, images, pad)
  flips = jax.random.bernoulli(flip_key, 0.5, images.shape[:1])
  return jnp.where(flips[:, None, None, None], images[:, :, ::-1], images)


def alternate(key: jax.Array, epoch: jax.Array, images: jax.Array) -> jax.Array:
  """Mirrors each image in every other epoch.

  Alternating flip (Jordan 2024, 94% on CIFAR-10 in 3.29 Seconds on a Single
  GPU, section 3). A coin of its own decides which images begin mirrored. An
  image is so seen both ways in any two epochs, where independent coins show it
  the same way again in half of them.

  Args:
    key: of the run.
    epoch: int32 scalar.
    images: [N,H,W,C], any dtype, the whole training set.

  Returns:
    [N,H,W,C], same dtype.
  """
  coins = jax.random.bernoulli(key, 0.5, images.shape[:1])
  mirrored = coins ^ (epoch % 2 == 1)
  return jnp.where(mirrored[:, None, None, None], images[:, :, ::-1], images)


_BY_NAME = {
  "none": lambda key, images: images,
  "crop": crop,
  "crop_flip": crop_and_flip,
  "crop_alternate": crop,  # and `alternate` at the start of an epoch
}
NAMES = tuple(_BY_NAME)


def augment(name: str):
  """An augmentation as a transform, which poisons nothing.

  Args:
    name: `none`, `crop`, `crop_flip` or `crop_alternate`.

  Returns:
    `(key, images [B,H,W,C], labels [B]) -> (images, labels, bool [B])`.

  Raises:
    UserError: there is none of that name.
  """
  if name not in _BY_NAME:
    raise UserError(f"unknown augmentation {name!r}: take {', '.join(NAMES)}")

  def transform(key, images, labels):
    changed = _BY_NAME[name](key, images)
    return changed, labels, jnp.zeros(labels.shape, bool)

  return transform
