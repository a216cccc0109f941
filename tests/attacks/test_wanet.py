"""Tests of warps, against numbers of PyTorch 2.13, and of WaNet."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bdjax.attacks import TriggerVariables, WanetSettings, wanet
from bdjax.attacks.warping import bicubic_weights, identity_grid, sample

KEY = jax.random.key(5)
NO_VARIABLES = TriggerVariables({}, {})


@pytest.mark.parametrize(
  "size, points, expected",
  [  # torch interpolate(mode="bicubic", align_corners=True) of unit vectors
    (
      5,
      4,
      [
        [1, 0, 0, 0],
        [0.2265625, 0.87890625, -0.10546875, 0],
        [-0.09375, 0.59375, 0.59375, -0.09375],
        [0, -0.10546875, 0.87890625, 0.2265625],
        [0, 0, 0, 1],
      ],
    ),
    (
      7,
      2,
      [
        [1, 0],
        [0.85648148, 0.14351852],
        [0.68518519, 0.31481481],
        [0.5, 0.5],
        [0.31481481, 0.68518519],
        [0.14351852, 0.85648148],
        [0, 1],
      ],
    ),
    (
      8,
      4,
      [
        [1, 0, 0, 0],
        [0.58017493, 0.49854227, -0.0787172, 0],
        [0.12099125, 0.95772595, -0.0787172, 0],
        [-0.10932945, 0.84548105, 0.30758017, -0.04373178],
        [-0.04373178, 0.30758017, 0.84548105, -0.10932945],
        [0, -0.0787172, 0.95772595, 0.12099125],
        [0, -0.0787172, 0.49854227, 0.58017493],
        [0, 0, 0, 1],
      ],
    ),
  ],
)
def test_bicubic_weights_are_those_of_pytorch(size, points, expected):
  got = bicubic_weights(size, points)
  assert got.dtype == np.float32
  np.testing.assert_allclose(got, expected, atol=1e-7)


def test_sample_is_pytorch_s_grid_sample():
  image = (np.arange(64) * 37 % 64 / 64).astype(np.float32).reshape(8, 8)
  y, x = np.meshgrid(*[np.linspace(-1, 1, 8)] * 2, indexing="ij")
  grid = np.stack([0.9 * np.sin(3 * x + y), 0.8 * np.cos(2 * y - x)], -1)
  # grid_sample(mode="bilinear", align_corners=True), every other row.
  expected = [
    [0.52331949, 0.56052792, 0.27554968, 0.64319068]
    + [0.49486735, 0.63060331, 0.30574725, 0.3072671],
    [0.35226447, 0.74303184, 0.58903144, 0.49527305]
    + [0.64362008, 0.79234152, 0.70448911, 0.55759903],
    [0.46565084, 0.49238401, 0.48598894, 0.63044186]
    + [0.50819589, 0.57799129, 0.29347605, 0.41927847],
    [0.46571808, 0.4706235, 0.22622735, 0.52987736]
    + [0.70657015, 0.43992884, 0.28103678, 0.77873329],
  ]
  got = jax.jit(sample)(image[None, ..., None], grid.astype(np.float32)[None])[
    0, ..., 0
  ]
  np.testing.assert_allclose(got[::2], expected, atol=2e-6)


def test_the_identity_grid_leaves_images_alone():
  images = jax.random.uniform(KEY, (2, 5, 7, 3))
  grid = identity_grid(5, 7)
  np.testing.assert_allclose(grid[0, :, 0], np.linspace(-1, 1, 7), atol=1e-6)
  np.testing.assert_allclose(grid[:, 0, 1], np.linspace(-1, 1, 5), atol=1e-6)
  got = sample(images, jnp.broadcast_to(grid, (2, 5, 7, 2)))
  np.testing.assert_allclose(got, images, atol=1e-6)


@pytest.mark.parametrize("axis, pixels", [(0, 1), (0, -2), (1, 1), (1, -1)])
def test_a_field_of_whole_pixels_shifts(axis, pixels):
  """Axis 0 of the field is x."""
  images = jax.random.uniform(KEY, (1, 5, 7, 2))
  side = (7, 5)[axis]
  step = jnp.zeros(2).at[axis].set(2 * pixels / (side - 1))
  grid = jnp.clip(identity_grid(5, 7) + step[None, None], -1, 1)[None]
  got = sample(images, grid)
  columns = np.clip(np.arange(side) + pixels, 0, side - 1)
  expected = jnp.take(images, columns, axis=2 - axis)
  np.testing.assert_allclose(got, expected, atol=1e-6)


def _wanet(shape=(6, 5, 1), **given):
  return wanet(WanetSettings(**given).filled("digits"), shape, 4)


def _ramps(height, width):
  """Return images of which a warp shows its x, and its y, in [0,1]."""
  return jnp.stack(((identity_grid(height, width) + 1) / 2,), 0)


def test_the_field_by_hand():
  height, width, strength = 6, 5, 0.5
  attack = _wanet((height, width, 2), target_labels="0,1", trigger_seed=4)
  points = jax.random.uniform(jax.random.key(4), (2, 4, 4, 2), minval=-1.0)
  for target in range(2):
    scaled = points[target] / np.abs(points[target]).mean()
    rows, cols = bicubic_weights(height, 4), bicubic_weights(width, 4)
    field = np.stack([rows @ scaled[..., d] @ cols.T for d in range(2)], -1)[
      None
    ]
    ramps = _ramps(height, width)
    # In [-1,1] the step is s / H times the field; in [0,1] half of it.
    expected = np.clip(ramps + strength * field / height / 2, 0, 1)
    index = jnp.full(1, target, jnp.int32)
    got = attack.apply(NO_VARIABLES, KEY, ramps, index)
    np.testing.assert_allclose(got, expected, atol=1e-5)


def test_no_strength_is_the_identity():
  attack = _wanet(strength=0.0)
  images = jax.random.uniform(KEY, (3, 6, 5, 1))
  index = jnp.zeros(3, jnp.int32)
  got = attack.apply(NO_VARIABLES, KEY, images, index)
  np.testing.assert_allclose(got, images, atol=1e-6)


def test_covers_are_the_warp_with_noise_of_a_pixel_over_the_height():
  attack = _wanet((6, 5, 2))
  ramps = jnp.repeat(_ramps(6, 5), 8, 0)
  index = jnp.zeros(8, jnp.int32)
  warped = attack.apply(NO_VARIABLES, KEY, ramps, index)
  covers = attack.cover(NO_VARIABLES, KEY, ramps, index)
  noise = np.asarray(covers - warped)
  bound = 1 / 6 / 2
  assert abs(noise).max() <= bound + 1e-6 and abs(noise).max() > 0.9 * bound
  # No two images have the same noise, nor x and y.
  assert len(np.unique(noise.reshape(8, -1), axis=0)) == 8
  assert (noise[..., 0] != noise[..., 1]).any()


@pytest.mark.parametrize(
  "given, rate",
  [
    ({}, 0.2),
    ({"poison_rate": 0.05}, 0.1),
    ({"poison_rate": 0.5}, 0.5),
    ({"cover_rate": 0.3}, 0.3),
    ({"target_labels": "all"}, 0.6),
  ],
)
def test_covers_are_twice_the_poisoned_where_there_is_room(given, rate):
  settings = WanetSettings(**given).filled("digits")
  assert settings.cover_rate == pytest.approx(rate)
  assert _wanet(**given).cover_rate == pytest.approx(rate)


def test_without_a_cover_rate_there_is_no_noise_mode():
  assert _wanet(cover_rate=0.0).cover is None
  assert _wanet().exact_rows
