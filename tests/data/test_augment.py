import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bdjax.batch import Batch
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
  roles = jnp.arange(8, dtype=jnp.int8) % 3
  batch = augment(name)(KEY, Batch(images, labels, roles))
  assert bool((batch.images == images).all()) == (name == "none")
  assert batch.labels is labels and batch.roles is roles
  expected = {"none": images, "crop_flip": crop_and_flip(KEY, images)}
  np.testing.assert_array_equal(
    batch.images, expected.get(name, crop(KEY, images))
  )


def test_draws_of_a_key_never_change():
  # Computed once: a change here changes every trained network.
  images = jnp.arange(3 * 25, dtype=jnp.int32).reshape(3, 5, 5, 1)
  centres = {
    name: augment(name)(KEY, Batch(images, None, None)).images[:, 2, 2, 0]
    for name in NAMES
  }
  assert {name: x.tolist() for name, x in centres.items()} == {
    "none": [12, 37, 62],
    "crop": [7, 28, 69],
    "crop_flip": [7, 27, 67],
    "crop_alternate": [7, 28, 69],
  }


def test_unknown_augmentation():
  words = "must be one of none, crop, crop_flip, crop_alternate .got 'mirror'"
  with pytest.raises(UserError, match=words):
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
