"""Weights that others trained, and ours for others.

A file of weights comes from anywhere. None is trusted: nothing in it is run,
what it declares is checked before memory is asked for, and whatever is wrong
with it is one `UserError`.
"""

import os
import pathlib

from bdjax.errors import UserError
from bdjax.models.base import Model, Variables, Weights
from bdjax.models.importers import layouts, pytorch, safetensors
from bdjax.models.importers.fitting import fit, named
from bdjax.models.importers.keras import load_keras

__all__ = [
  "LAYOUTS",
  "export_safetensors",
  "fit",
  "load",
  "load_keras",
  "named",
  "read",
]

LAYOUTS = ("bdjax", *layouts.EXPORTS)


def load(path: str | os.PathLike, model: Model) -> Weights:
  """The weights in a file, for a model of ours.

  Args:
    path: the file; for its kinds see `read`.
    model: whose params and batch statistics are wanted.

  Returns:
    Weights, float32, all of them from the file.

  Raises:
    UserError: the file is not of these kinds, damaged or too large, or a
      layer of it is missing, left over or of another shape.
  """
  return fit(read(path), model, str(path))


def read(path: str | os.PathLike) -> Weights:
  """The weights in a file as our layers are called, for `fit`.

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
    (`named` makes them alike). A name that no layout knows stays as it is.

  Raises:
    UserError: the file is not of these kinds, damaged or too large.
  """
  suffix = pathlib.Path(path).suffix.lower()
  if suffix in (".h5", ".hdf5"):
    return Weights(load_keras(path), {})
  if suffix == ".safetensors":
    return layouts.read(safetensors.read(path), str(path))
  if suffix in (".pt", ".pth"):
    return layouts.read(pytorch.read(path), str(path))
  raise UserError(
    f"{path}: unknown kind of weights: give .h5, .safetensors, .pt or .pth"
  )


def export_safetensors(
  path: str | os.PathLike,
  params: Variables,
  batch_stats: Variables,
  layout: str = "bdjax",
) -> None:
  """Writes weights as safetensors; a file of that name is replaced.

  Args:
    path: the file; its directory exists.
    params: nested dicts, of any model of ours.
    batch_stats: likewise.
    layout: `bdjax`, which `load` reads back for any model, or the names and
      shapes of a PyTorch state dict: `torchvision` or `cifar` for `resnet18`,
      `deepid` for `deepid`. The first layer's normalisation is not part of
      any of them: the pixels that a PyTorch network is given must be
      normalised before.

  Raises:
    UserError: the layout is unknown or another network's, or the file cannot
      be written.
  """
  if layout not in LAYOUTS:
    raise UserError(f"unknown layout {layout!r}; take {', '.join(LAYOUTS)}")
  safetensors.write(path, layouts.write(Weights(params, batch_stats), layout))
