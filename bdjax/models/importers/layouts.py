"""Conversions between flat state dicts, PyTorch's and ours, and our weights.

A convolution's kernel is [K,C,h,w] in PyTorch and [h,w,C,K] here; a dense
layer's is [out,in] and here [in,out]. A dense layer behind a flatten reads a
map's values channels first in PyTorch and channels last here, so its inputs
are permuted too. ResNet-18 has no such layer: it averages over the map.
"""

from typing import NamedTuple

import numpy as np

from bdjax.errors import UserError
from bdjax.files import printable
from bdjax.models.base import Weights
from bdjax.models.importers.fitting import flatten_names

_PREFIXES = ("module.", "_orig_mod.")  # of DataParallel, torch.compile
_STATISTICS = {"mean": "running_mean", "var": "running_var"}
_OURS = ("params.", "batch_stats.")


class Layout(NamedTuple):
  """The names and shapes of a network's layers in PyTorch.

  Attributes:
    layers: PyTorch's name of a layer -> ours.
    flattened: our name of a dense layer that reads a flattened map -> the
      map's (h, w, c).
  """

  layers: dict[str, str]
  flattened: dict[str, tuple[int, int, int]]


def _resnet18(shortcut: str, head: str) -> Layout:
  layers = {"conv1": "stem", "bn1": "stem_norm", head: "logits"}
  for i in range(8):
    theirs, ours = f"layer{i // 2 + 1}.{i % 2}", f"blocks.{i}"
    for n in (1, 2):
      layers[f"{theirs}.conv{n}"] = f"{ours}.conv_{n}"
      layers[f"{theirs}.bn{n}"] = f"{ours}.norm_{n}"
    layers[f"{theirs}.{shortcut}.0"] = f"{ours}.shortcut"
    layers[f"{theirs}.{shortcut}.1"] = f"{ours}.shortcut_norm"
  return Layout(layers, {})


_DEEPID = ("conv_1", "conv_2", "conv_3", "conv_4", "fc_1", "fc_2", "output")
EXPORTS = {
  "torchvision": _resnet18("downsample", "fc"),
  "cifar": _resnet18("shortcut", "linear"),
  # For 55x47 images. No release in PyTorch is known: the layers have their
  # names in Keras.
  "deepid": Layout(
    dict(zip(_DEEPID, _DEEPID, strict=True)),
    {"fc_1": (5, 4, 60), "fc_2": (4, 3, 80)},
  ),
}
# There are mixtures of the two, so either name is accepted for either layer.
_IMPORTS = (
  Layout({**EXPORTS["torchvision"].layers, **EXPORTS["cifar"].layers}, {}),
  EXPORTS["deepid"],
)


def read(state: dict[str, np.ndarray], source: str) -> Weights:
  """Convert a flat dict to weights by dotted name, for `fit`.

  Args:
    state: as `write` made it, in any layout, or a PyTorch state dict. A name
      that no layout knows stays as it is, so that `fit` reports it.
    source: the file, for the error.

  Raises:
    UserError: no layout knows any of the names, or two are of one weight.
  """
  if state and all(name.startswith(_OURS) for name in state):
    parts = ({}, {})
    for name, array in state.items():
      prefix, _, rest = name.partition(".")
      parts[prefix == "batch_stats"][rest] = array
    return Weights(*parts)
  for prefix in _PREFIXES:
    if state and all(name.startswith(prefix) for name in state):
      state = {name.removeprefix(prefix): a for name, a in state.items()}
  known = [sum(_layer(n) in i.layers for n in state) for i in _IMPORTS]
  if not any(known):
    shown = ", ".join(map(printable, sorted(state)[:3])) or "nothing"
    raise UserError(
      f"{source}: its names ({shown}) are of no layout that is known: use a "
      "ResNet-18 as torchvision or the common CIFAR code names it, or deepid"
    )
  return _from_torch(state, _IMPORTS[int(np.argmax(known))], source)


def _layer(name: str) -> str:
  return name.rpartition(".")[0]


def _from_torch(state, layout: Layout, source: str) -> Weights:
  weights = Weights({}, {})
  for name, array in state.items():
    theirs, _, variable = name.rpartition(".")
    if variable == "num_batches_tracked":
      continue
    layer = layout.layers.get(theirs)
    ours, array = _variable(
      variable, array, layout.flattened.get(layer), source
    )
    tree = weights.batch_stats if ours in _STATISTICS else weights.params
    key = f"{layer}.{ours}" if layer and ours else name
    if key in tree:
      raise UserError(
        f"{source}: {printable(name)} has a second name in the file: keep one"
      )
    tree[key] = array
  return weights


def _variable(variable: str, array: np.ndarray, flattened, source: str):
  """Return our name and array of a variable; None for an unknown one."""
  if variable.startswith("running_"):
    names = {theirs: ours for ours, theirs in _STATISTICS.items()}
    return names.get(variable), array
  if variable == "bias":
    return "bias", array
  if variable != "weight":
    return None, array
  if array.ndim == 4:
    return "kernel", array.transpose(2, 3, 1, 0)
  if array.ndim != 2:
    return "scale", array
  if flattened:
    _require_inputs(array.shape[1], flattened, f"{source}: ")
    h, w, c = flattened
    array = array.reshape(-1, c, h, w).transpose(0, 2, 3, 1)
  return "kernel", array.reshape(len(array), -1).T


def _require_inputs(inputs: int, flattened, source: str = "") -> None:
  h, w, c = flattened
  if inputs != h * w * c:
    raise UserError(
      f"{source}a dense layer has {inputs} inputs and not {h}x{w}x{c}: deepid "
      "converts from and to PyTorch for 55x47 images only"
    )


def write(weights: Weights, layout: str) -> dict[str, np.ndarray]:
  """Convert weights to a flat dict of float32 arrays, the reverse of `read`.

  Args:
    weights: of a model of ours.
    layout: `bdjax` or a key of `EXPORTS`.

  Raises:
    UserError: the layout is another network's.
  """
  params, stats = (
    {k: np.asarray(v, np.float32) for k, v in flatten_names(tree).items()}
    for tree in weights
  )
  if layout == "bdjax":
    pairs = zip(_OURS, (params, stats), strict=True)
    return {f"{p}{k}": v for p, tree in pairs for k, v in tree.items()}
  chosen = EXPORTS[layout]
  theirs = {ours: name for name, ours in chosen.layers.items()}
  unknown = {_layer(name) for name in (*params, *stats)} - theirs.keys()
  if unknown:
    raise UserError(
      f"the layout {layout} has no layer {', '.join(sorted(unknown))}: the "
      "layout must be bdjax, or the network's own"
    )
  state = {}
  for name, array in (*params.items(), *stats.items()):
    layer, _, variable = name.rpartition(".")
    name, array = _to_torch(variable, array, chosen.flattened.get(layer))
    state[f"{theirs[layer]}.{name}"] = array
  return state


def _to_torch(variable: str, array: np.ndarray, flattened):
  if variable in _STATISTICS:
    return _STATISTICS[variable], array
  if variable != "kernel":
    return {"scale": "weight"}.get(variable, variable), array
  if array.ndim == 4:
    return "weight", array.transpose(3, 2, 0, 1)
  if flattened:
    _require_inputs(array.shape[0], flattened)
    array = array.reshape(*flattened, -1).transpose(2, 0, 1, 3)
  return "weight", array.reshape(-1, array.shape[-1]).T
