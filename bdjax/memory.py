"""How much goes through a network at once on a device."""

import os

import jax

# Measured, 28x28 images through a small CNN: 20,000 images in chunks of 200
# take 574 ms, in chunks of 1,000, which do not stay near the cache, 1,211.
_ON_CPU = 200
# More than that an accelerator does not need to be busy.
_MOST = 16384
_SHARE = 1 / 4  # of the memory; data, weights and the compiler need some too
# What a pass holds of an image, in first stages of 64 filters, float32: of
# ResNet-18 the most, by arithmetic.
_FILTERS, _HELD, _HELD_FOR_GRADIENT = 64, 8, 32


def images_at_once(
  image_shape: tuple[int, int, int], *, gradient: bool = False
) -> int:
  """How many images a device takes at once.

  On CPU as many as stay near the cache; on accelerators what fits a quarter
  of their memory, so fewer of larger images.

  Args:
    image_shape: (H, W, C).
    gradient: whether the pass goes backwards too, and holds every layer.

  Returns:
    At least 1.
  """
  if jax.default_backend() == "cpu":
    return _ON_CPU
  held = _HELD_FOR_GRADIENT if gradient else _HELD
  each = 4 * held * _FILTERS * image_shape[0] * image_shape[1]
  return max(1, min(_MOST, int(_SHARE * device_bytes()) // each))


def device_bytes() -> int:
  """Memory that JAX may take on a device, the first of this process.

  A CPU does not say: it has the machine's.
  """
  stats = jax.local_devices()[0].memory_stats() or {}
  installed = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
  return stats.get("bytes_limit", installed)
