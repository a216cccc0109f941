"""What the tests of the importers share."""

import jax
import numpy as np
import pytest

from bdjax import models
from bdjax.errors import UserError
from bdjax.models import Weights

DEEPID = models.get("deepid", image_shape=(31, 31, 1), num_classes=4)
RESNET18 = models.get("resnet18", image_shape=(8, 8, 3), num_classes=3, width=4)


def draw(model, seed=0):
  """Weights in the shapes of a model's own, without compiling anything."""
  rng = np.random.default_rng(seed)
  return jax.tree.map(
    lambda leaf: rng.uniform(0.1, 1, leaf.shape).astype(np.float32),
    Weights(*jax.eval_shape(model.init, jax.random.key(0))),
  )


def assert_equal(got, want):
  assert jax.tree.structure(got) == jax.tree.structure(want)
  jax.tree.map(np.testing.assert_array_equal, got, want)


def refused(words, function, *args):
  """Checks that a call is refused with these words, in one line."""
  with pytest.raises(UserError, match=words) as error:
    function(*args)
  assert "\n" not in str(error.value)
  return str(error.value)


def write_keras(group, layers, dtype=np.float32, fixed=True):
  """Writes layers as Keras 2 does; names of fixed length as h5py 2 did."""

  def names(items):
    encoded = [name.encode() for name in items]
    return np.array(encoded) if fixed else encoded

  group.attrs["layer_names"] = names([*layers, "flatten_1"])
  group.attrs["backend"] = b"tensorflow"
  group.create_group("flatten_1").attrs["weight_names"] = np.zeros(0)
  for layer, variables in layers.items():
    weights = [f"{layer}/{variable}:0" for variable in variables]
    place = group.create_group(layer)
    place.attrs["weight_names"] = names(weights)
    for weight, array in zip(weights, variables.values(), strict=True):
      place[weight] = array.astype(dtype)
