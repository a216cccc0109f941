"""Found weights, placed in a model that wants them: all of them, or none."""

from typing import Any

import jax
import jax.numpy as jnp

from bdjax.errors import UserError
from bdjax.models.base import Model, Variables, Weights
from bdjax.models.importers.checks import printable

_LISTED = 50  # names in a line: all of ResNet-18's layers


def named(tree: Variables) -> dict[str, Any]:
  """The leaves of nested dicts by their dotted names.

  Dicts whose keys are dotted names already may be mixed in.

  Raises:
    UserError: two leaves have one name.
  """
  found = {}
  for key, value in tree.items():
    if isinstance(value, dict):
      inner = {f"{key}.{k}": v for k, v in named(value).items()}
    else:
      inner = {str(key): value}
    for name, leaf in inner.items():
      if name in found:
        raise UserError(f"two weights are named {printable(name)}: rename one")
      found[name] = leaf
  return found


def fit(found: Weights, model: Model, where: str) -> Weights:
  """Weights in the structure of a model's own; all of them, or none.

  Args:
    found: nested dicts of arrays, or dicts by dotted name
      (`blocks.0.conv_1.kernel`).
    model: whose weights are wanted.
    where: begins the error: the file.

  Returns:
    The model's nested dicts, of float32 jax arrays.

  Raises:
    UserError: something is missing, left over or of another shape; in one
      line, by name.
  """
  wanted = Weights(*jax.eval_shape(model.init, jax.random.key(0)))
  have, want = _by_name(found), _by_name(wanted)
  problems = {
    "missing": _whole_layers(want.keys() - have.keys(), have),
    "left over": _whole_layers(have.keys() - want.keys(), want),
    "of another shape": [
      f"{name} {list(have[name].shape)} where {list(leaf.shape)} belongs"
      for name, leaf in want.items()
      if name in have and have[name].shape != leaf.shape
    ],
  }
  lists = [
    f"{what}: {_list(names)}" for what, names in problems.items() if names
  ]
  if lists:
    raise UserError(
      f"{where}: these are not weights of this model ({'; '.join(lists)}): "
      "nothing is loaded: give the model, its classes and its size as they were"
    )

  def place(path, leaf):
    name = jax.tree_util.keystr(path, simple=True, separator=".")
    return jnp.asarray(have[name.removeprefix("params.")], leaf.dtype)

  return jax.tree_util.tree_map_with_path(place, wanted)


def _by_name(weights: Weights) -> dict[str, Any]:
  """Both trees in one; of the parameters, the bare names."""
  stats = {"batch_stats": weights.batch_stats} if weights.batch_stats else {}
  return named({**weights.params, **stats})


def _whole_layers(names: set[str], others: dict[str, Any]) -> list[str]:
  """Names, with a layer's own in the place of all of its variables'."""
  present = {name.rpartition(".")[0] for name in others}
  shown = set()
  for name in names:
    layer = name.rpartition(".")[0]
    if not layer or layer in present:
      shown.add(name)
    else:
      bare = layer.removeprefix("batch_stats.")
      shown.add(layer if bare in present else bare)
  return sorted(shown)


def _list(names: list[str]) -> str:
  """Names in a line; what is too many is counted."""
  more = len(names) - _LISTED
  shown = ", ".join(map(printable, names[:_LISTED]))
  return f"{shown} and {more} more" if more > 0 else shown
