"""How programs are compiled: options per backend, and the cache on disk."""

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
  """Compiler options that speed programs up on the default backend.

  They are probed by compiling a program of one addition: a jaxlib that does
  not know an option does without.
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
  """`jax.jit` with this backend's compiler options."""
  return jax.jit(function, compiler_options=options(), **kwargs)


def enable_cache(directory: str | os.PathLike | None = None) -> None:
  """Keeps compiled programs on disk, so that a second start is quick.

  Args:
    directory: default `$XDG_CACHE_HOME/bdjax/xla` (`~/.cache/bdjax/xla`).
      `JAX_COMPILATION_CACHE_DIR` in the environment wins over the default.
  """
  if directory is None:
    if os.environ.get("JAX_COMPILATION_CACHE_DIR"):
      return
    cache = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    directory = pathlib.Path(cache) / "bdjax" / "xla"
  jax.config.update("jax_compilation_cache_dir", str(directory))
  jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
  jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
