import jax
import jax.numpy as jnp
import pytest

from bdjax import sharding
from bdjax.errors import UserError


def test_mesh_over_all_devices():
  mesh = sharding.make_mesh()
  assert mesh.size == jax.device_count() == 4
  assert mesh.axis_names == ("data",)


def test_replicate_and_cut():
  mesh = sharding.make_mesh()
  x = jnp.arange(8.0)
  whole = sharding.replicate(mesh, {"x": x})["x"]
  assert whole.sharding.is_fully_replicated
  cut = jax.device_put(x, sharding.along_batch(mesh))
  assert [len(s.data) for s in cut.addressable_shards] == [2] * 4


@pytest.mark.parametrize("size, near", [(6, 4), (3, 4), (30, 28)])
def test_uneven_batches_are_refused_with_one_that_fits(size, near):
  with pytest.raises(UserError, match=f"take {near}$"):
    sharding.check_batch_size(sharding.make_mesh(), size)


def test_even_batches_pass():
  sharding.check_batch_size(sharding.make_mesh(), 8)
