import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bdjax.data.augment import (
  NAMES,
  alternate,
  augment,
  crop,
  crop_and_flip,
)
from bdjax.errors import UserError

KEY = jax.random.key(1)


def test_every_result_is_a_shift_or_its_mirror():
  image = np.arange(36, dtype=np.uint8).reshape(6, 6, 1)
  padded = np.pad(image, ((2, 2), (2, 2), (0, 0)), mode="reflect")
  crops = [padded[i : i + 6, j : j + 6] for i in range(5) for j in range(5)]
  allowed = {c.tobytes() for c in crops} | {c[:, ::-1].tobytes() for c in crops}
  out = crop_and_flip(KEY, jnp.tile(image, (400, 1, 1, 1)), pad=2)
  seen = {np.asarray(x).tobytes() for x in out}
  assert seen <= allowed
  # 50 equally likely results, 400 draws: a missing one has chance 0.03%.
  assert len(seen) >= 45


def test_shape_and_dtype_under_jit_and_vmap():
  images = jnp.ones((2, 3, 8, 8, 3))
  out = jax.jit(jax.vmap(crop_and_flip))(jax.random.split(KEY, 2), images)
  assert out.shape == images.shape and out.dtype == images.dtype


def test_crop_shifts_and_never_mirrors():
  image = np.arange(36, dtype=np.uint8).reshape(6, 6, 1)
  padded = np.pad(image, ((1, 1), (1, 1), (0, 0)), mode="reflect")
  allowed = {
    padded[i : i + 6, j : j + 6].tobytes() for i in range(3) for j in range(3)
  }
  out = crop(KEY, jnp.tile(image, (200, 1, 1, 1)), pad=1)
  assert {np.asarray(x).tobytes() for x in out} == allowed


@pytest.mark.parametrize("name", NAMES)
def test_augment_changes_images_alone(name):
  images, labels = jax.random.uniform(KEY, (8, 8, 8, 1)), jnp.arange(8)
  out, same, poisoned = augment(name)(KEY, images, labels)
  assert bool((out == images).all()) == (name == "none")
  np.testing.assert_array_equal(same, labels)
  assert not poisoned.any()
  with pytest.raises(UserError, match="take none, crop, crop_flip"):
    augment("mirror")


def test_alternate_mirrors_in_every_other_epoch():
  images = jax.random.uniform(KEY, (64, 4, 5, 3))
  first, second, third = (
    np.asarray(alternate(KEY, jnp.int32(epoch), images)) for epoch in range(3)
  )
  mirrored = np.asarray(images)[:, :, ::-1]
  begins_mirrored = (first == mirrored).all((1, 2, 3))
  assert 16 < begins_mirrored.sum() < 48
  coins = begins_mirrored[:, None, None, None]
  np.testing.assert_array_equal(first, np.where(coins, mirrored, images))
  np.testing.assert_array_equal(second, np.where(coins, images, mirrored))
  np.testing.assert_array_equal(third, first)
