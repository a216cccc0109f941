"""Batch sizes that a device can hold and is fast with."""

import os

import jax

# Measured, 28x28 images through a small CNN: 20,000 images in chunks of 200
# take 574 ms, in chunks of 1,000, which do not stay near the cache, 1,211.
_CPU_BATCH_SIZE = 200
_MAX_BATCH_SIZE = 16384  # an accelerator needs no more to be busy
# Of the memory: data, weights and the compiler need some too.
_MEMORY_SHARE = 1 / 4
# Activations of an image that a pass holds at once, in stages of 64 float32
# filters: by arithmetic the most that ResNet-18 needs.
_FILTERS, _STAGES, _STAGES_WITH_GRADIENT = 64, 8, 32


def max_batch_size(
  image_shape: tuple[int, int, int], *, gradient: bool = False
) -> int:
  """Return the largest batch that a device should take at once.

  Args:
    image_shape: (H, W, C).
    gradient: whether a backward pass follows, which needs every activation.

  Returns:
    At least 1: on CPU as many images as stay near the cache, on accelerators
    what fits a quarter of their memory.
  """
  if jax.default_backend() == "cpu":
    return _CPU_BATCH_SIZE
  stages = _STAGES_WITH_GRADIENT if gradient else _STAGES
  bytes_per_image = 4 * stages * _FILTERS * image_shape[0] * image_shape[1]
  most = int(_MEMORY_SHARE * device_bytes()) // bytes_per_image
  return max(1, min(_MAX_BATCH_SIZE, most))


def device_bytes() -> int:
  """Return the memory that JAX may use on the first device of this process.

  Returns:
    Bytes; on CPU, which has no limit of its own, all memory of the machine.
  """
  stats = jax.local_devices()[0].memory_stats() or {}
  return stats.get("bytes_limit") or _installed_bytes()


def _installed_bytes():
  try:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
  except (AttributeError, ValueError):  # Windows has no sysconf
    return 8 * 2**30
