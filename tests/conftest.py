"""Strict settings for all tests; a fresh cache folder for each process."""

import os

import pytest

# Before jax is imported: CPU, and four of it for the sharding tests.
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = (
  os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=4"
)

import jax  # noqa: E402

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture(scope="session")
def one_device():
  """A mesh of the first virtual device alone."""
  from bdjax import sharding

  return sharding.make_mesh(jax.devices()[:1])
