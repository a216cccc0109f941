"""Compilation: options for each backend, and the cache on disk."""

import functools
import os
import pathlib
from collections.abc import Callable

import jax

# jaxlib's YNNPACK kernels are slow for convolutions and fast for reductions
# (batch normalisation's sums), so on CPU only reductions go there.
_CPU_OPTIONS = {
  "xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_REDUCE"
}


@functools.cache
def options() -> dict[str, str] | None:
  """Return compiler options that make programs faster on this backend.

  They are tried on a program of one addition, since not every jaxlib knows
  them.

  Returns:
    Option -> value; None where the backend has none or jaxlib refuses them.
  """
  if jax.default_backend() != "cpu":
    return None
  try:
    probe = jax.jit(lambda x: x + 1.0, compiler_options=_CPU_OPTIONS)
    probe.lower(0.0).compile()
  except Exception:  # jaxlib raises various types for an unknown option
    return None
  return _CPU_OPTIONS


def jit(function: Callable, **kwargs) -> Callable:
  """Compile a function with this backend's options.

  Args:
    function: as for `jax.jit`.
    **kwargs: of `jax.jit`.

  Returns:
    The compiled function.
  """
  return jax.jit(function, compiler_options=options(), **kwargs)


def enable_cache(directory: str | os.PathLike | None = None) -> None:
  """Keep compiled programs on disk, so that the next start is fast.

  Args:
    directory: of the cache; None for `$JAX_COMPILATION_CACHE_DIR` where that
      is set, else `$XDG_CACHE_HOME/bdjax/xla` (`~/.cache/bdjax/xla`).
  """
  if directory is None:
    if os.environ.get("JAX_COMPILATION_CACHE_DIR"):
      return
    cache = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    directory = pathlib.Path(cache) / "bdjax" / "xla"
  jax.config.update("jax_compilation_cache_dir", str(directory))
  jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
  jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
