"""Keras 2 weights out of HDF5 files, without Keras or TensorFlow."""

import math
import os

import h5py
import numpy as np

from bdjax.errors import UserError
from bdjax.models.importers import checks

# Far beyond any network's: what is in a file, how deep, and a name's length.
_OBJECTS = 10_000
_DEPTH = 8
_NAME = 1_000
_PLAIN = (h5py.h5d.CONTIGUOUS, h5py.h5d.COMPACT)


def load_keras(path: str | os.PathLike) -> dict[str, dict[str, np.ndarray]]:
  """The weights in a Keras 2 `.h5` file, by layer.

  Takes the file of `model.save_weights` and that of `model.save`, whose
  weights are in the group `model_weights`. Kernels of convolutions are
  [h,w,C,K] and of dense layers [in,out] as ours are, and Keras flattens
  channels last whatever the images' layout, so that nothing is transposed.

  Only what Keras writes is followed: hard links and plain arrays of floats in
  the file itself. A link elsewhere, an array kept in another file, or one
  that takes a decompressor, which HDF5 may load from a library, is refused.
  The attributes that list layers and weights repeat the names of the links,
  and are not read: HDF5 does not say how long such strings are until it has
  read them.

  Args:
    path: the file.

  Returns:
    `{layer: {"kernel": float32 [...], "bias": float32 [...]}}`, by name;
    layers without weights are left out.

  Raises:
    UserError: the file is not one of these, damaged, hostile or too large.
  """
  file = checks.require_file(path)
  with checks.reading(path, "a Keras .h5 file"), h5py.File(file, "r") as root:
    datasets = _datasets(path, _weights(path, root))
    declared = sum(
      math.prod(dataset.shape) * dataset.dtype.itemsize
      for dataset in datasets.values()
    )
    checks.require_bytes(path, declared, file.stat().st_size)
    found = {}
    for (layer, variable), dataset in datasets.items():
      name = f"{layer}.{variable}"
      array = checks.as_float32(path, name, dataset[()])
      found.setdefault(layer, {})[variable] = array
  return found


def _weights(path: str | os.PathLike, root: h5py.File) -> h5py.Group:
  """The group whose members are the layers."""
  group = root
  if root.get("model_weights", getlink=True) is not None:
    group = _child(path, root, "model_weights")
  # Keras cuts a list too long for an attribute into `layer_names0`, ...
  if "layer_names" not in group.attrs and "layer_names0" not in group.attrs:
    raise UserError(
      f"{path}: no layer_names in it: give the .h5 file that a Keras 2 model "
      "wrote with save_weights or save"
    )
  return group


def _datasets(
  path: str | os.PathLike, root: h5py.Group
) -> dict[tuple[str, str], h5py.Dataset]:
  """The arrays by (layer, variable); none of them is read."""
  found, seen, groups = {}, 0, [((), root)]
  while groups:
    place, group = groups.pop(0)
    for name in _names(path, group):
      seen += 1
      if seen > _OBJECTS or len(place) > _DEPTH:
        raise UserError(
          f"{path}: more than {_OBJECTS} objects or {_DEPTH} levels: give the "
          "weights of one network"
        )
      child = _child(path, group, name)
      if isinstance(child, h5py.Group):
        groups.append(((*place, name), child))
        continue
      if not place:
        raise UserError(
          f"{path}: {checks.printable(name)} is of no layer: give the .h5 file "
          "that a Keras 2 model wrote with save_weights or save"
        )
      # `conv_1/conv_1/kernel:0`: the scope within need not be the layer's name.
      key = place[0], name.partition(":")[0]
      if key in found:
        raise UserError(
          f"{path}: two weights are {checks.printable('.'.join(key))}: save a "
          "network that has no networks for layers"
        )
      _require_plain(path, child, ".".join(key))
      found[key] = child
  return found


def _names(path: str | os.PathLike, group: h5py.Group) -> list[str]:
  """The names in a group, unless they are too many or too long."""
  names = []

  def keep(name):
    names.append(name)
    # Anything but None ends it: before all of a hostile list is in memory.
    return len(names) > _OBJECTS or len(name) > _NAME or None

  stopped, _ = group.id.links.iterate(keep)
  if stopped:
    raise UserError(
      f"{path}: names too many or too long: give the weights of one network"
    )
  return [name.decode() for name in names]


def _child(
  path: str | os.PathLike, group: h5py.Group, name: str
) -> h5py.Group | h5py.Dataset:
  """What stands in a group under a name, if it is of the file itself."""
  # A name with a slash is a path, which HDF5 would follow through any link.
  link = None if "/" in name else group.get(name, getlink=True)
  if not isinstance(link, h5py.HardLink):
    raise UserError(
      f"{path}: {checks.printable(name)} is a link to elsewhere: give a file "
      "that holds its weights itself"
    )
  return group[name]


def _require_plain(
  path: str | os.PathLike, dataset: h5py.Dataset, name: str
) -> None:
  """Checks that an object is an array that lies in the file as it is."""
  name = checks.printable(name)
  if not isinstance(dataset, h5py.Dataset) or dataset.shape is None:
    raise UserError(f"{path}: {name} is not an array: fetch the file again")
  if dataset.dtype.kind != "f":
    raise UserError(f"{path}: {name} is {dataset.dtype}: weights are floats")
  made = dataset.id.get_create_plist()
  if (
    made.get_layout() not in _PLAIN
    or made.get_nfilters()
    or made.get_external_count()
  ):
    raise UserError(
      f"{path}: {name} is compressed, in pieces or in another file: rewrite "
      "the file with h5repack --layout CONTI --filter NONE"
    )
