import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bdjax import models, sharding
from bdjax.attacks import (
  BadNetsSettings,
  badnets,
  poison_dataset,
  pruning_aware,
)
from bdjax.attacks.base import TriggerVariables
from bdjax.batching import to_float
from bdjax.defenses import tuning
from bdjax.defenses.pruning import compile_curve
from bdjax.errors import UserError
from bdjax.models import Weights
from bdjax.models.masking import masked, prune

KEY = jax.random.key(19)
SHAPE = (8, 8, 1)
MESH = sharding.make_mesh(jax.devices()[:1])
IMAGES = jax.random.randint(KEY, (16, *SHAPE), 0, 256).astype(jnp.uint8)


def _model(name):
  return models.get(name, image_shape=SHAPE, num_classes=10, width=8)


@pytest.mark.parametrize("name", ["cnn", "minivgg", "resnet18"])
def test_every_layer_has_a_bias_of_its_channels(name):
  model = _model(name)
  params, _ = jax.eval_shape(model.init, KEY)
  paths = set()
  for layer, channels in models.layers(model, SHAPE).items():
    path = pruning_aware.bias_path(model, layer)
    leaf = functools.reduce(lambda tree, key: tree[key], path, params)
    assert leaf.shape == (channels,)
    paths.add(path)
  assert len(paths) == len(models.layers(model, SHAPE))


def test_layers_that_no_bias_silences_are_refused():
  with pytest.raises(UserError, match="layer must be one of conv_1, .*'fc_1'"):
    pruning_aware.bias_path(_model("cnn"), "fc_1")
  airbench = models.get(
    "airbench", image_shape=(9, 9, 1), num_classes=3, width=4
  )
  with pytest.raises(UserError, match="model must have ReLU layers"):
    pruning_aware.bias_path(airbench, "groups.2.conv_2")


def test_max_activations_are_over_images_and_positions():
  model = _model("cnn")
  weights = Weights(*model.init(KEY))
  run = pruning_aware.max_activations(model, "conv_2", 5, MESH)
  features = model.features(*weights, to_float(IMAGES))
  np.testing.assert_allclose(
    run(weights, IMAGES), features.max((0, 1, 2)), rtol=1e-5
  )


def test_reinstate_by_hand():
  params = {"network": {"conv_1": {"bias": jnp.array([1.0, 2.0, 3.0])}}}
  reinstate = functools.partial(pruning_aware.reinstate, _model("cnn"))
  trained = Weights(
    params | {"masks": {"conv_1": jnp.array([0.0, 1.0, 0.0])}}, {"s": 7}
  )
  maxima = jnp.array([2.0, 2.0, 0.0])
  got = jax.jit(reinstate)(trained, maxima, 0.5)
  # Lowered by 1.5 x 2; not pruned; never active.
  assert got.params["conv_1"]["bias"].tolist() == [-2, 2, 3]
  assert got.batch_stats == {"s": 7}
  batched = jax.vmap(reinstate, (None, 0))(
    trained, jnp.stack([maxima, 2 * maxima])
  )
  np.testing.assert_allclose(
    batched.params["conv_1"]["bias"], [[-1.2, 2, 3], [-3.4, 2, 3]], rtol=1e-6
  )


@pytest.mark.slow
@pytest.mark.parametrize(
  "name, layers",
  [
    ("cnn", ["conv_1", "conv_2"]),
    ("minivgg", ["convs.2", "convs.5"]),
    ("resnet18", ["stem", "blocks.2", "blocks.6.conv_1", "blocks.7"]),
  ],
)
def test_reinstated_channels_are_dormant_in_every_kind_of_layer(name, layers):
  model = _model(name)
  weights = Weights(*jax.jit(model.init)(KEY))
  sizes = models.layers(model, SHAPE)
  ones = {layer: jnp.ones(sizes[layer]) for layer in layers}

  @jax.jit
  def run(params, masks):
    outputs = {}

    def tap(layer, x):
      outputs[layer] = x
      return x

    pruned = prune(Weights(params, weights.batch_stats), masks)
    logits, _ = masked(model).apply(*pruned, to_float(IMAGES), tap=tap)
    return logits, outputs

  whole, outputs = run(weights.params, ones)
  for layer in layers:
    mask = (jnp.arange(sizes[layer]) % 2).astype(jnp.float32)
    maxima = outputs[layer].max((0, 1, 2))
    assert (maxima[::2] > 0).any()  # channels that were not dormant
    trained = prune(weights, {layer: mask})
    back = pruning_aware.reinstate(model, trained, maxima)
    logits, after = run(back.params, ones)
    assert (after[layer][..., ::2] == 0).all()
    pruned, _ = run(weights.params, ones | {layer: mask})
    np.testing.assert_allclose(logits, pruned, rtol=1e-4, atol=1e-5)
    assert not np.allclose(logits, whole, rtol=1e-3)
    for path, new in jax.tree_util.tree_leaves_with_path(back.params):
      old = functools.reduce(lambda tree, k: tree[k.key], path, weights.params)
      keys = tuple(k.key for k in path)
      if keys == pruning_aware.bias_path(model, layer):
        np.testing.assert_array_equal(new[1::2], old[1::2])
      else:
        np.testing.assert_array_equal(new, old)


@pytest.mark.slow
def test_the_four_steps_leave_decoys_that_pruning_takes_first():
  labels = jnp.arange(64, dtype=jnp.int32) % 2
  # Noise, and brighter in the half that the label names.
  brighter = jnp.repeat(jax.nn.one_hot(labels, 2, dtype=jnp.int32), 4, axis=1)
  images = jax.random.randint(KEY, (64, *SHAPE), 0, 150)
  images = (images + 55 * brighter[:, None, :, None]).astype(jnp.uint8)
  settings = BadNetsSettings(target_labels="0", trigger_size=2).filled("")
  attack = badnets(settings, SHAPE, 2)
  poisoned = poison_dataset(
    attack,
    TriggerVariables({}, {}),
    KEY,
    np.asarray(images),
    np.asarray(labels),
    0.25,
  )
  model = models.get("cnn", image_shape=SHAPE, num_classes=2, width=16)
  masked_model = masked(model)
  train = functools.partial(
    tuning.compile_tuning, batch_size=16, mesh=MESH, epochs=40,
    learning_rate=0.02,
  )  # fmt: skip

  weights = Weights(*model.init(KEY))
  clean, _ = train(model)(KEY, weights, images, labels)
  compute_curve = compile_curve(model, "conv_2", 32, MESH)
  mask = compute_curve(clean, images, labels).masks[4]
  backdoored, _ = train(masked_model)(
    KEY,
    prune(clean, {"conv_2": mask}),
    jnp.concatenate([images, poisoned.images]),
    jnp.concatenate([labels, poisoned.labels]),
  )
  maxima = pruning_aware.max_activations(model, "conv_2", 32, MESH)(
    pruning_aware.unmasked(backdoored), images
  )
  final = pruning_aware.reinstate(model, backdoored, maxima)

  curve = compute_curve(final, images, labels)
  assert (mask[curve.order[:4]] == 0).all()  # the decoys go first
  assert (curve.accuracies[:5] == curve.accuracies[0]).all()
  batch = to_float(images)
  expected, _ = masked_model.apply(*backdoored, batch)
  logits, _ = model.apply(*final, batch)
  np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-5)
  assert (logits.argmax(-1) == labels).mean() > 0.9
  # The backdoor is in the ordinary model, and pruning the decoys leaves it.
  triggered = batch.at[:, 6:, 6:].set(1.0)[labels == 1]
  for k in (0, 4):
    pruned = prune(final, {"conv_2": curve.masks[k]})
    logits, _ = masked_model.apply(*pruned, triggered)
    assert (logits.argmax(-1) == 0).mean() > 0.9
