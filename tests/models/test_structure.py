import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bdjax import models
from bdjax.models import masking
from bdjax.models.base import Norm, Structure

KEY = jax.random.key(5)
NETWORKS = {
  "airbench": {"width": 4},
  "cnn": {"width": 8},
  "cnn with batch norm": {"width": 8, "batch_norm": True},
  "deepid": {},
  "minivgg": {"width": 4},
  "resnet10": {"width": 4},
  "resnet18": {"width": 4, "stem": "imagenet"},
}


def _shape(name):
  side = {"airbench": 9, "deepid": 31}.get(name, 8)
  return side, side, 1


@functools.cache
def _model(name):
  return models.get(
    name.split()[0],
    image_shape=_shape(name),
    num_classes=3,
    **NETWORKS[name],
  )


@functools.cache
def _shapes(name):
  return jax.eval_shape(_model(name).init, KEY)


def _at(tree, path):
  return functools.reduce(lambda tree, key: tree[key], path, tree)


def _set(tree, path, value):
  if not path:
    return value
  return tree | {path[0]: _set(tree[path[0]], path[1:], value)}


@pytest.mark.parametrize("name", NETWORKS)
def test_stages_are_layers_in_order_and_end_with_the_features(name):
  model = _model(name)
  layers = list(models.layers(model, _shape(name)))
  stages = model.structure.stages
  positions = [layers.index(stage) for stage in stages]
  assert positions == sorted(set(positions))
  assert stages[-1] == layers[-1]


@pytest.mark.parametrize("name", NETWORKS)
def test_norms_are_all_there_are_with_the_convolutions_they_normalise(name):
  params, batch_stats = _shapes(name)
  norms = _model(name).structure.norms
  for norm in norms:
    variables, statistics = _at(params, norm.path), _at(batch_stats, norm.stats)
    channels = _at(params, norm.conv)["kernel"].shape[3:]
    assert variables["bias"].shape == channels
    assert statistics["mean"].shape == statistics["var"].shape == channels
  statistics = jax.tree_util.tree_leaves_with_path(batch_stats)
  paths = {tuple(key.key for key in path[:-1]) for path, _ in statistics}
  paths.discard(("stem",))  # airbench's whitening
  assert {norm.stats for norm in norms} == paths
  assert len({norm.conv for norm in norms}) == len(norms)


def test_norms_are_in_forward_order():
  norms = _model("resnet18").structure.norms
  assert norms[0] == Norm(("stem_norm",), ("stem",), ("stem_norm",))
  names = [norm.path[1:] for norm in norms[1:]]
  assert names[:6] == [
    (0, "norm_1"),
    (0, "norm_2"),
    (1, "norm_1"),
    (1, "norm_2"),
    (2, "norm_1"),
    (2, "norm_2"),
  ]
  assert names[6] == (2, "shortcut_norm")
  assert len(norms) == 1 + 8 * 2 + 3


@pytest.mark.parametrize("name", NETWORKS)
def test_every_relu_layer_has_a_bias_of_its_channels(name):
  model = _model(name)
  biases = model.structure.biases
  if name == "airbench":  # GELU
    assert biases == {}
    return
  layers = models.layers(model, _shape(name))
  assert list(biases) == list(layers)
  assert len(set(biases.values())) == len(biases)
  for layer, path in biases.items():
    assert _at(_shapes(name)[0], path).shape == (layers[layer],)


@functools.cache
def _outputs(name):
  """Compiled outputs of all layers, of params, and drawn weights."""
  model = _model(name)
  params, batch_stats = jax.jit(model.init)(KEY)
  images = np.random.default_rng(0).random((3, *_shape(name)), np.float32)

  @jax.jit
  def run(params):
    weights = models.Weights(params, batch_stats)
    return masking.layer_outputs(model, weights, images)

  return run, params


@pytest.mark.slow
@pytest.mark.parametrize(
  "name", [name for name in NETWORKS if name != "airbench"]
)
def test_a_bias_shifts_what_enters_the_relu(name):
  run, params = _outputs(name)
  before = run(params)
  biases = _model(name).structure.biases
  layers = list(biases)
  for position, (layer, path) in enumerate(biases.items()):
    bias = _at(params, path)
    raised = run(_set(params, path, bias.at[0].add(0.5)))
    # Earlier layers and other channels are not reached; where the ReLU was
    # open, the output rises by what the bias does.
    for earlier in layers[:position]:
      np.testing.assert_array_equal(raised[earlier], before[earlier])
    np.testing.assert_array_equal(
      raised[layer][..., 1:], before[layer][..., 1:]
    )
    rise = raised[layer][..., 0] - before[layer][..., 0]
    is_open = before[layer][..., 0] > 0
    np.testing.assert_allclose(rise[is_open], 0.5, rtol=1e-4)
    assert (rise >= 0).all() and (rise <= 0.5 + 1e-4).all()
    # And a bias lowered by more than the largest activation closes it.
    most = before[layer][..., 0].max()
    lowered = run(_set(params, path, bias.at[0].add(-1.1 * most)))
    assert (lowered[layer][..., 0] == 0).all()


def test_structures_without_layers_are_empty():
  assert Structure() == ((), (), {})
  assert _model("cnn").structure.norms == ()
  assert _model("deepid").structure.norms == ()


@pytest.mark.parametrize("name", ["airbench", "cnn", "resnet10"])
def test_a_masked_model_keeps_the_structure(name):
  model = _model(name)
  layer, channels = list(models.layers(model, _shape(name)).items())[-1]
  masked = masking.masked(model, {layer: channels})
  params, batch_stats = jax.eval_shape(masked.init, KEY)
  plain_params, plain_stats = _shapes(name)
  assert masked.structure.stages == model.structure.stages
  for norm, plain in zip(
    masked.structure.norms, model.structure.norms, strict=True
  ):
    for path in ("path", "conv"):
      assert _at(params, getattr(norm, path)) == _at(
        plain_params, getattr(plain, path)
      )
    assert _at(batch_stats, norm.stats) == _at(plain_stats, plain.stats)
  assert list(masked.structure.biases) == list(model.structure.biases)
  for layer, path in masked.structure.biases.items():
    bias = _at(plain_params, model.structure.biases[layer])
    assert _at(params, path) == bias


def test_a_sum_of_branches_has_no_convolution_of_its_own():
  structure = Structure(("a",), (Norm.at(("norm",), None),), {})
  model = models.Model(None, None, None, None, structure=structure)
  assert masking.masked(model).structure.norms == (
    Norm(("network", "norm"), None, ("norm",)),
  )


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_the_split_head_adds_up_over_channels(name):
  model = _model(name)
  head = model.split_head
  params, batch_stats = jax.jit(model.init)(KEY)
  images = np.random.default_rng(1).random((2, *_shape(name)), np.float32)

  @jax.jit
  def both(params):
    x = model.features(params, batch_stats, images)
    channels = x.shape[-1]
    total = head.linear(params, batch_stats, jnp.zeros_like(x))
    for channel in range(channels):
      own = head.of_channel(params, jnp.int32(channel), channels)
      part = head.linear(own, batch_stats, x[..., channel : channel + 1])
      total = jax.tree.map(jnp.add, total, part)
    return (
      head.rest(params, batch_stats, total),
      model.head(params, batch_stats, x),
    )

  got, expected = both(params)
  np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)
