import jax
import jax.numpy as jnp
import pytest

from bdjax import sharding
from bdjax.errors import UserError


def test_mesh_over_all_devices():
  mesh = sharding.make_mesh()
  assert mesh.size == jax.device_count() == 4
  assert mesh.axis_names == ("data",)


def test_mesh_over_some_devices():
  mesh = sharding.make_mesh(jax.devices()[1:3])
  assert list(mesh.devices) == jax.devices()[1:3]


def test_replicate_and_split():
  mesh = sharding.make_mesh()
  x = jnp.arange(8.0)
  whole = sharding.replicate(mesh, {"x": x})["x"]
  assert whole.sharding.is_fully_replicated
  split = jax.device_put(x, sharding.along_batch(mesh))
  assert [len(s.data) for s in split.addressable_shards] == [2] * 4


@pytest.mark.parametrize("size, nearest", [(6, 4), (3, 4), (30, 28)])
def test_uneven_batches_are_refused_with_one_that_fits(size, nearest):
  message = rf"batch_size must .* 4 devices \(got {size}\): use {nearest}$"
  with pytest.raises(UserError, match=message):
    sharding.check_batch_size(sharding.make_mesh(), size)


def test_even_batches_pass():
  sharding.check_batch_size(sharding.make_mesh(), 8)
