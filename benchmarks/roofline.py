"""The share of the machine's peak that a program reaches.

Operations are those of the textbook algorithm; Winograd's convolution does
fewer, so a share can lie above what its kernels reach, and even above 1.

References:
  Williams, Waterman and Patterson (2009), Roofline: An Insightful Visual
  Performance Model for Multicore Architectures. The least time of a program is
  the larger of its operations over the arithmetic ceiling, which is a large
  matrix product, and its bytes over the memory ceiling, which is a large copy.
"""

import functools
import time
from typing import Any

import jax
import jax.numpy as jnp


def matrix_side() -> int:
  """Return the side of a matrix that fills the default device."""
  return 2048 if jax.default_backend() == "cpu" else 8192


def _fastest(function, args, repeats=5):
  """Time the fastest of several calls: a ceiling is reached at best."""
  jax.block_until_ready(function(*args))
  seconds = []
  for _ in range(repeats):
    begin = time.perf_counter()
    jax.block_until_ready(function(*args))
    seconds.append(time.perf_counter() - begin)
  return min(seconds)


@functools.cache
def ceilings(bf16: bool = False, side: int = 0) -> dict[str, float]:
  """Measure the ceilings of the default device, once a process.

  Args:
    bf16: whether products are of bfloat16, else of float32.
    side: of the square matrices; 0 for one that fills the device.

  Returns:
    `operations` and `bytes` a second.
  """
  side = side or matrix_side()
  a = jnp.ones((side, side), jnp.bfloat16 if bf16 else jnp.float32)
  product = _fastest(jax.jit(jnp.matmul), (a, a))
  # 256 MiB on a CPU, far above its caches. A copy that XLA cannot leave out.
  x = jnp.ones((16, side, side), jnp.float32)
  copy = _fastest(jax.jit(lambda x: x + 1.0), (x,))
  return {"operations": 2 * side**3 / product, "bytes": 2 * x.nbytes / copy}


def share(
  operations: float,
  traffic: float,
  seconds: float,
  ceiling: dict[str, float],
) -> dict[str, Any]:
  """Compute the share of the roofline that a call reaches.

  Args:
    operations: of a call.
    traffic: bytes that it must move.
    seconds: that it took.
    ceiling: from `ceilings`.

  Returns:
    `operations`, `traffic`, `ceiling`, `bound` (which of the two binds) and
    `share` of it, for a line of JSON.
  """
  least = {
    "arithmetic": operations / ceiling["operations"],
    "memory": traffic / ceiling["bytes"],
  }
  bound = max(least, key=lambda name: least[name])
  return {
    "operations": operations,
    "traffic": traffic,
    "ceiling": ceiling,
    "bound": bound,
    "share": least[bound] / seconds,
  }


def size(*trees: Any) -> float:
  """Count the bytes of all arrays, or shapes of arrays, in trees."""
  leaves = jax.tree.leaves(trees)
  return float(sum(x.size * x.dtype.itemsize for x in leaves))
