"""Weights from and for other frameworks.

No file of weights is trusted: nothing in it is run, the sizes that it declares
are checked before memory is allocated, and whatever is wrong with it becomes
one `UserError`.
"""

import os
import pathlib

from bdjax.errors import UserError
from bdjax.models.base import Model, Variables, Weights
from bdjax.models.importers import layouts, pytorch, safetensors
from bdjax.models.importers.fitting import fit, flatten_names
from bdjax.models.importers.keras import load_keras

__all__ = [
  "LAYOUTS",
  "export_safetensors",
  "fit",
  "flatten_names",
  "load",
  "load_keras",
  "read",
]

LAYOUTS = ("bdjax", *layouts.EXPORTS)


def load(path: str | os.PathLike, model: Model) -> Weights:
  """Load the weights in a file into a model of ours.

  Args:
    path: the file; see `read` for the formats.
    model: the model that gets them.

  Returns:
    Weights, float32, all of them from the file.

  Raises:
    UserError: the file is of another format, damaged or too large, or a
      layer of it is missing, left over or of another shape.
  """
  return fit(read(path), model, str(path))


def read(path: str | os.PathLike) -> Weights:
  """Read the weights in a file, by our names of the layers.

  - `.h5`, `.hdf5`: Keras 2 (and the same layout of later ones), weights or
    whole model; the layers' names must be those of the model (`deepid`).
  - `.safetensors`: what `export_safetensors` wrote, of any model, or a
    PyTorch state dict, as follows.
  - `.pt`, `.pth`: a PyTorch state dict of torchvision's or the common CIFAR
    (kuangliu) ResNet-18 for `resnet18`, or of `deepid` by its Keras names;
    needs torch 2.6 or later, which opens it in a process of its own.

  Of ResNet-18 in the CIFAR layout: its authors pool 4x4 and we pool all of
  the last map, which for 32x32 images is the same.

  Args:
    path: the file.

  Returns:
    Weights of numpy arrays, float32, by dotted name or in nested dicts
    (`flatten_names` makes them alike); `fit` gives them the structure of a
    model. A name that no layout knows is kept.

  Raises:
    UserError: the file is of another format, damaged or too large.
  """
  suffix = pathlib.Path(path).suffix.lower()
  if suffix in (".h5", ".hdf5"):
    return Weights(load_keras(path), {})
  if suffix == ".safetensors":
    return layouts.read(safetensors.read(path), str(path))
  if suffix in (".pt", ".pth"):
    return layouts.read(pytorch.read(path), str(path))
  raise UserError(
    f"{path}: unknown format of weights: it must be .h5, .safetensors, .pt or "
    ".pth"
  )


def export_safetensors(
  path: str | os.PathLike,
  params: Variables,
  batch_stats: Variables,
  layout: str = "bdjax",
) -> None:
  """Write weights as safetensors; an existing file is replaced.

  Args:
    path: the file; its directory must exist.
    params: nested dicts, of any model of ours.
    batch_stats: likewise.
    layout: `bdjax`, which `load` reads back for any model, or the names and
      shapes of a PyTorch state dict: `torchvision` or `cifar` for `resnet18`,
      `deepid` for `deepid`. None has the first layer's normalisation: the
      inputs of a PyTorch network must be normalised before.

  Raises:
    UserError: the layout is unknown or another network's, or the file cannot
      be written.
  """
  if layout not in LAYOUTS:
    raise UserError(
      f"layout must be one of {', '.join(LAYOUTS)} (got {layout!r})"
    )
  safetensors.write(path, layouts.write(Weights(params, batch_stats), layout))
