"""Weights from a file, fitted to a model: all of them, or none."""

from typing import Any

import jax
import jax.numpy as jnp

from bdjax.errors import UserError
from bdjax.files import printable
from bdjax.models.base import Model, Variables, Weights

_MAX_LISTED = 50  # names in a line: all of ResNet-18's layers


def flatten_names(tree: Variables) -> dict[str, Any]:
  """Return the leaves of nested dicts by their dotted names.

  Args:
    tree: nested dicts; a key may be a dotted name itself.

  Raises:
    UserError: two leaves have one name.
  """
  leaves = {}
  for key, value in tree.items():
    if isinstance(value, dict):
      inner = {f"{key}.{k}": v for k, v in flatten_names(value).items()}
    else:
      inner = {str(key): value}
    for name, leaf in inner.items():
      if name in leaves:
        raise UserError(f"two weights are named {printable(name)}: rename one")
      leaves[name] = leaf
  return leaves


def fit(weights: Weights, model: Model, source: str) -> Weights:
  """Arrange weights in the structure of a model's own; all of them, or none.

  Args:
    weights: nested dicts of arrays, or dicts by dotted name
      (`blocks.0.conv_1.kernel`).
    model: the model whose structure they get.
    source: the file, for the error.

  Returns:
    The model's nested dicts, of float32 jax arrays.

  Raises:
    UserError: something is missing, left over or of another shape; in one
      line, by name.
  """
  shapes = Weights(*jax.eval_shape(model.init, jax.random.key(0)))
  have, want = _by_name(weights), _by_name(shapes)
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
      f"{source}: these are not weights of this model ({'; '.join(lists)}): "
      "nothing is loaded: the model, its classes and its size must be those of "
      "the file"
    )

  def array_of(path, leaf):
    name = jax.tree_util.keystr(path, simple=True, separator=".")
    return jnp.asarray(have[name.removeprefix("params.")], leaf.dtype)

  return jax.tree_util.tree_map_with_path(array_of, shapes)


def _by_name(weights: Weights) -> dict[str, Any]:
  """Return both trees in one; batch statistics have a prefix."""
  stats = {"batch_stats": weights.batch_stats} if weights.batch_stats else {}
  return flatten_names({**weights.params, **stats})


def _whole_layers(names: set[str], others: dict[str, Any]) -> list[str]:
  """Replace the names of all variables of a layer by the layer's own."""
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
  """Join names in a line; count those beyond the limit."""
  more = len(names) - _MAX_LISTED
  shown = ", ".join(map(printable, names[:_MAX_LISTED]))
  return f"{shown} and {more} more" if more > 0 else shown
