import jax
import jax.numpy as jnp

from bdjax import compiler


def test_jit_computes_the_same():
  x = jnp.arange(6.0).reshape(2, 3)

  def f(x):
    return jnp.tanh(x).sum(0)

  assert jnp.allclose(compiler.jit(f)(x), f(x))


def test_an_unknown_option_is_left_out(monkeypatch):
  monkeypatch.setattr(compiler, "_CPU_OPTIONS", {"xla_no_such_option": "1"})
  compiler.options.cache_clear()
  try:
    assert compiler.options() is None
    assert compiler.jit(lambda x: x + 1.0)(1.0) == 2.0
  finally:
    compiler.options.cache_clear()


def test_cache_is_written_where_the_user_keeps_caches(monkeypatch, tmp_path):
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
  monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
  names = (
    "jax_compilation_cache_dir",
    "jax_persistent_cache_min_compile_time_secs",
    "jax_persistent_cache_min_entry_size_bytes",
  )
  before = {name: getattr(jax.config, name) for name in names}
  try:
    compiler.enable_cache()
    assert jax.config.jax_compilation_cache_dir == str(
      tmp_path / "bdjax" / "xla"
    )
  finally:
    for name, value in before.items():
      jax.config.update(name, value)


def test_an_accelerator_has_no_options(monkeypatch):
  monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
  compiler.options.cache_clear()
  try:
    assert compiler.options() is None
  finally:
    compiler.options.cache_clear()


def test_the_cache_of_the_environment_is_kept(monkeypatch):
  monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "/elsewhere")
  before = jax.config.jax_compilation_cache_dir
  compiler.enable_cache()
  assert jax.config.jax_compilation_cache_dir == before
