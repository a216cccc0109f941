"""The mesh of devices, and the placement of arrays on it.

It has one axis, `data`: batches are split along it, everything else is
replicated.
"""

from collections.abc import Sequence
from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from bdjax.errors import UserError


def make_mesh(devices: Sequence[jax.Device] | None = None) -> Mesh:
  """Make a mesh over the given devices, by default over all of them."""
  devices = list(devices or jax.devices())
  return jax.make_mesh(
    (len(devices),), ("data",), axis_types=(AxisType.Auto,), devices=devices
  )


def replicated(mesh: Mesh) -> NamedSharding:
  """Return the sharding of arrays that every device holds whole."""
  return NamedSharding(mesh, PartitionSpec())


def along_batch(mesh: Mesh) -> NamedSharding:
  """Return the sharding of arrays that are split along their first axis."""
  return NamedSharding(mesh, PartitionSpec("data"))


def replicate(mesh: Mesh, tree: Any) -> Any:
  """Copy every array of a tree to every device of the mesh."""
  return jax.device_put(tree, replicated(mesh))


def check_batch_size(mesh: Mesh, batch_size: int) -> None:
  """Check that a batch can be split evenly over the devices.

  Args:
    mesh: the devices.
    batch_size: images in a batch, over all devices.

  Raises:
    UserError: it cannot.
  """
  if batch_size % mesh.size:
    nearest = max(1, batch_size // mesh.size) * mesh.size
    raise UserError(
      f"batch_size must be a multiple of the {mesh.size} devices (got "
      f"{batch_size}): use {nearest}"
    )
