"""The mesh, and where arrays live on it.

One axis, `data`: batches are cut along it, everything else is replicated.
"""

from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from bdjax.errors import UserError


def make_mesh(devices: list | None = None) -> Mesh:
  """A mesh over the given devices, by default all that JAX sees."""
  devices = devices or jax.devices()
  return jax.make_mesh(
    (len(devices),), ("data",), axis_types=(AxisType.Auto,), devices=devices
  )


def replicated(mesh: Mesh) -> NamedSharding:
  """The sharding of arrays that every device holds whole."""
  return NamedSharding(mesh, PartitionSpec())


def along_batch(mesh: Mesh) -> NamedSharding:
  """The sharding of arrays cut along their leading axis."""
  return NamedSharding(mesh, PartitionSpec("data"))


def replicate(mesh: Mesh, tree: Any) -> Any:
  """Puts every array of a tree whole on every device of the mesh."""
  return jax.device_put(tree, replicated(mesh))


def check_batch_size(mesh: Mesh, batch_size: int) -> None:
  """Checks that a batch can be cut evenly.

  Raises:
    UserError: it cannot.
  """
  if batch_size % mesh.size:
    near = max(1, batch_size // mesh.size) * mesh.size
    raise UserError(
      f"batch_size {batch_size} cannot be cut evenly over {mesh.size} devices;"
      f" take {near}"
    )
