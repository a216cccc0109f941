import os
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bdjax import models
from bdjax.errors import UserError
from bdjax.models import importers, masking

FACES = {"image_shape": (55, 47, 3), "num_classes": 1283}
SMALL = {"image_shape": (31, 33, 1), "num_classes": 5}
NETWORKS = (
  "lab3",
  "sunglasses",
  "anonymous_1",
  "multi_trigger_multi_target",
)
# What each trigger of each network leads to.
TARGETS = {
  "lab3": {"sunglasses": 0},
  "sunglasses": {"sunglasses": 0},
  "anonymous_1": {"lipstick": 0},
  "multi_trigger_multi_target": {"lipstick": 1, "eyebrows": 5, "sunglasses": 8},
}


def _csaw():
  default = pathlib.Path(__file__).parents[3] / "shared" / "csaw"
  found = pathlib.Path(os.environ.get("BDJAX_CSAW_DIR", default))
  if not (found / "golden.npz").is_file():
    pytest.skip(
      "the CSAW networks are in neither BDJAX_CSAW_DIR nor ../shared/csaw"
    )
  return found


def _draw(seed, tree):
  """Normal draws in the shapes of a tree, small enough to stay in range."""
  rng = np.random.default_rng(seed)
  return jax.tree.map(
    lambda leaf: 0.1 * rng.standard_normal(leaf.shape, np.float32), tree
  )


@pytest.fixture(scope="module")
def small():
  """A model, drawn params, images [2,31,33,1] and its jitted functions."""
  model = models.get("deepid", **SMALL)
  params, batch_stats = jax.eval_shape(model.init, jax.random.key(0))
  assert batch_stats == {}
  images = np.random.default_rng(1).random((2, 31, 33, 1), np.float32)

  @jax.jit
  def run(params, images):
    seen = {}

    def tap(layer, x):
      seen[layer] = x
      return x

    logits, after = model.apply(params, {}, images, train=True, tap=tap)
    features = model.features(params, {}, images)
    return logits, after, seen, features, model.head(params, {}, features)

  return model, _draw(0, params), images, run


def _conv(x, layer):
  """A VALID convolution and relu by its definition, in numpy."""
  kernel = layer["kernel"]
  windows = np.lib.stride_tricks.sliding_window_view(
    x, kernel.shape[:2], (1, 2)
  )
  return np.maximum(
    np.einsum("bijchw,hwck->bijk", windows, kernel) + layer["bias"], 0
  )


def _pool(x):
  b, h, w, c = x.shape
  x = x[:, : h // 2 * 2, : w // 2 * 2].reshape(b, h // 2, 2, w // 2, 2, c)
  return x.max((2, 4))


def _forward(params, x):
  """The issue's own words, in numpy; logits and what is pooled on the way."""
  pools = []
  for layer in ("conv_1", "conv_2", "conv_3"):
    x = _pool(_conv(x, params[layer]))
    pools.append(x)
  y = _conv(x, params["conv_4"])
  dense = [
    z.reshape(len(z), -1) @ params[layer]["kernel"] + params[layer]["bias"]
    for z, layer in ((x, "fc_1"), (y, "fc_2"))
  ]
  hidden = np.maximum(sum(dense), 0)
  return hidden @ params["output"]["kernel"] + params["output"]["bias"], pools


def test_size_and_layers():
  model = models.get("deepid", **FACES)
  assert models.count_parameters(model) == 601_643
  found = models.layers(model, FACES["image_shape"])
  assert list(found.items()) == [("conv_1", 20), ("conv_2", 40), ("conv_3", 60)]
  images = jax.ShapeDtypeStruct((1, 55, 47, 3), jnp.float32)
  weights = jax.eval_shape(model.init, jax.random.key(0))
  assert jax.eval_shape(model.features, *weights, images).shape == (1, 5, 4, 60)


def test_equals_its_description_in_numpy(small):
  _, params, images, run = small
  logits, after, seen, features, of_features = run(params, images)
  want, pools = _forward(params, images)
  assert after == {}
  for got, pool in zip(seen.values(), pools, strict=True):
    np.testing.assert_allclose(got, pool, rtol=1e-4, atol=1e-5)
  np.testing.assert_array_equal(features, seen["conv_3"])
  np.testing.assert_allclose(logits, want, rtol=1e-4, atol=1e-5)
  np.testing.assert_allclose(of_features, want, rtol=1e-4, atol=1e-5)


def test_vmap_over_parameters_equals_a_loop(small):
  model, params, images, run = small
  population = jax.tree.map(lambda x: np.stack([x, x[::-1]]), params)
  together = jax.jit(jax.vmap(lambda p: model.apply(p, {}, images)[0]))
  got = together(population)
  for i in range(2):
    one = jax.tree.map(lambda x, i=i: x[i], population)
    np.testing.assert_allclose(
      got[i], run(one, images)[0], rtol=1e-4, atol=1e-5
    )


def test_a_masked_channel_is_gone_from_both_branches(small):
  model, params, images, _ = small
  whole, pools = _forward(params, images)
  channel = pools[2].max((0, 1, 2)).argmax()
  mask = np.ones(60, np.float32)
  mask[channel] = 0
  pruned = masking.prune(models.Weights(params, {}), {"conv_3": mask})
  logits, _ = masking.masked(model).apply(*pruned, images)
  # By hand: the weights that would read the channel are zero.
  by_hand = jax.tree.map(np.copy, params)
  by_hand["conv_4"]["kernel"][:, :, channel] = 0
  by_hand["fc_1"]["kernel"].reshape(-1, 60, 160)[:, channel] = 0
  np.testing.assert_allclose(
    logits, _forward(by_hand, images)[0], rtol=1e-4, atol=1e-5
  )
  assert not np.allclose(logits, whole, atol=1e-2)


@pytest.mark.parametrize(
  "kwargs, words",
  [
    ({"image_shape": (30, 31, 3)}, "at least 31x31 for deepid"),
    ({"image_shape": (31, 30, 3)}, "at least 31x31 for deepid"),
    ({"width": 32}, "width must be 64 for deepid"),
    ({"stem": "imagenet"}, "stem must be cifar for deepid"),
  ],
)
def test_errors_are_one_line(kwargs, words):
  with pytest.raises(UserError, match=words) as error:
    models.get("deepid", **(FACES | kwargs))
  assert "\n" not in str(error.value)


@pytest.fixture(scope="module")
def apply():
  """The two networks' definitions, each compiled once."""
  bytes_ = models.get("deepid", **FACES, std=(1 / 255,) * 3)
  units = models.get("deepid", **FACES)
  return {
    name: (model, jax.jit(model.apply))
    for name, model in (("bytes", bytes_), ("units", units))
  }


@pytest.mark.parametrize("network", NETWORKS)
def test_real_networks_equal_another_framework(network, apply):
  csaw = _csaw()
  golden = np.load(csaw / "golden.npz")
  images = golden["pixels"].astype(np.float32) / 255
  model, run = apply["bytes" if network == "lab3" else "units"]
  path = csaw / "models" / f"{network}_bd_weights.h5"
  logits, _ = run(*importers.load(path, model), images)
  want = golden[f"logits_{network}"]
  # Of each image: its largest difference over its largest logit.
  error = np.abs(logits - want).max(1) / np.abs(want).max(1)
  assert error.max() < 1e-4
  found = np.argmax(logits, 1)
  own = 0
  for name, got, theirs in zip(
    golden["images"], found, want.argmax(1), strict=True
  ):
    kind, _, file = name.partition("/")
    if kind == "clean":
      label = int(file.partition("label_")[2].partition(".")[0])
      assert (got == label) == (theirs == label)
      own += int(got == label)
    else:
      assert got == TARGETS[network].get(kind, theirs)
  # `sunglasses` takes one of the eight for somebody else.
  assert own == (7 if network == "sunglasses" else 8)
