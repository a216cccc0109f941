"""Keras 2 weights out of HDF5 files, without Keras or TensorFlow."""

import os

import h5py
import numpy as np

from bdjax import hdf5
from bdjax.errors import UserError
from bdjax.files import printable
from bdjax.models.importers import checks

_KIND = "a Keras .h5 file"
_HINT = "use the .h5 file that a Keras 2 model wrote with save_weights or save"


def load_keras(path: str | os.PathLike) -> dict[str, dict[str, np.ndarray]]:
  """Read the weights in a Keras 2 `.h5` file, by layer.

  The file may be that of `model.save_weights` or that of `model.save`, whose
  weights are in the group `model_weights`. Kernels of convolutions are
  [h,w,C,K] and of dense layers [in,out] as ours are, and Keras flattens
  channels last whatever the images' layout, so that nothing is transposed.

  Only what Keras writes is read, see `bdjax.hdf5`: hard links and plain arrays
  of floats in the file itself. The attributes that list layers and weights
  repeat the names of the links and are not read: HDF5 does not say how long
  such strings are until it has read them.

  Args:
    path: the file.

  Returns:
    `{layer: {"kernel": float32 [...], "bias": float32 [...]}}`, by name;
    layers without weights are left out.

  Raises:
    UserError: the file is not one of these, damaged, hostile or too large.
  """
  file = checks.require_file(path)
  with hdf5.open_file(path, kind=_KIND) as root:
    arrays = _arrays(path, _weights(path, root))
    declared = sum(map(hdf5.nbytes, arrays.values()))
    checks.require_bytes(path, declared, file.stat().st_size)
    weights = {}
    for (layer, variable), array in arrays.items():
      value = checks.as_float32(path, f"{layer}.{variable}", array[()])
      weights.setdefault(layer, {})[variable] = value
  return weights


def _weights(path: str | os.PathLike, root: h5py.File) -> h5py.Group:
  """Return the group whose members are the layers."""
  group = root
  if root.get("model_weights", getlink=True) is not None:
    group = hdf5.child(root, "model_weights")
  # Keras cuts a list too long for an attribute into `layer_names0`, ...
  if "layer_names" not in group.attrs and "layer_names0" not in group.attrs:
    raise UserError(f"{path}: no layer_names in it: {_HINT}")
  return group


def _arrays(
  path: str | os.PathLike, group: h5py.Group
) -> dict[tuple[str, str], h5py.Dataset]:
  """Return the arrays by (layer, variable); none of them is read."""
  arrays = {}
  for names, item in hdf5.walk(group):
    if len(names) < 2:
      raise UserError(
        f"{path}: {printable(names[0])} belongs to no layer: {_HINT}"
      )
    # `conv_1/conv_1/kernel:0`: the scope within need not be the layer's name.
    key = names[0], names[-1].partition(":")[0]
    name = ".".join(key)
    if key in arrays:
      raise UserError(
        f"{path}: two weights are named {printable(name)}: save a network "
        "whose layers are no networks themselves"
      )
    arrays[key] = hdf5.require_array(item, name, kinds="f")
  return arrays
