import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bdjax import models, sharding
from bdjax.attacks import pruning_aware
from bdjax.attacks.badnets import badnets
from bdjax.attacks.poison import poison
from bdjax.defenses import pruning, tuning
from bdjax.errors import UserError
from bdjax.models import Weights

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
  found = set()
  for layer, channels in models.layers(model, SHAPE).items():
    path = pruning_aware.bias_path(layer)
    leaf = functools.reduce(lambda tree, key: tree[key], path, params)
    assert leaf.shape == (channels,)
    found.add(path)
  assert len(found) == len(models.layers(model, SHAPE))


def test_a_layer_of_another_network():
  with pytest.raises(UserError, match="'fc_1' has no known bias"):
    pruning_aware.bias_path("fc_1")


def test_max_activations_are_over_images_and_positions():
  model = _model("cnn")
  weights = Weights(*model.init(KEY))
  run = pruning_aware.max_activations(model, "conv_2", 5, MESH)
  features = model.features(*weights, IMAGES.astype(jnp.float32) / 255)
  np.testing.assert_allclose(
    run(weights, IMAGES), features.max((0, 1, 2)), rtol=1e-5
  )


def test_reinstate_by_hand():
  params = {"network": {"conv_1": {"bias": jnp.array([1.0, 2.0, 3.0])}}}
  trained = Weights(
    params | {"masks": {"conv_1": jnp.array([0.0, 1.0, 0.0])}}, {"s": 7}
  )
  maxima = jnp.array([2.0, 2.0, 0.0])
  got = jax.jit(pruning_aware.reinstate)(trained, maxima, 0.5)
  # Lowered by 1.5 x 2; not pruned; never active.
  assert got.params["conv_1"]["bias"].tolist() == [-2, 2, 3]
  assert got.batch_stats == {"s": 7}
  batched = jax.vmap(pruning_aware.reinstate, (None, 0))(
    trained, jnp.stack([maxima, 2 * maxima])
  )
  np.testing.assert_allclose(
    batched.params["conv_1"]["bias"], [[-1.2, 2, 3], [-3.4, 2, 3]], rtol=1e-6
  )


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

    masked = pruning.prune(Weights(params, weights.batch_stats), masks)
    images = IMAGES.astype(jnp.float32) / 255
    logits, _ = pruning.masked(model).apply(*masked, images, False, tap)
    return logits, outputs

  whole, outputs = run(weights.params, ones)
  for layer in layers:
    mask = (jnp.arange(sizes[layer]) % 2).astype(jnp.float32)
    maxima = outputs[layer].max((0, 1, 2))
    assert (maxima[::2] > 0).any()  # channels that were not dormant
    trained = pruning.prune(weights, {layer: mask})
    back = pruning_aware.reinstate(trained, maxima)
    logits, after = run(back.params, ones)
    assert (after[layer][..., ::2] == 0).all()
    pruned, _ = run(weights.params, ones | {layer: mask})
    np.testing.assert_allclose(logits, pruned, rtol=1e-4, atol=1e-5)
    assert not np.allclose(logits, whole, rtol=1e-3)
    for path, new in jax.tree_util.tree_leaves_with_path(back.params):
      old = functools.reduce(lambda tree, k: tree[k.key], path, weights.params)
      keys = tuple(k.key for k in path)
      if keys == pruning_aware.bias_path(layer):
        np.testing.assert_array_equal(new[1::2], old[1::2])
      else:
        np.testing.assert_array_equal(new, old)


def test_the_four_steps_leave_decoys_that_pruning_takes_first():
  labels = jnp.arange(64, dtype=jnp.int32) % 2
  # Noise, and brighter in the half that the label names.
  brighter = jnp.repeat(jax.nn.one_hot(labels, 2, dtype=jnp.int32), 4, axis=1)
  images = jax.random.randint(KEY, (64, *SHAPE), 0, 150)
  images = (images + 55 * brighter[:, None, :, None]).astype(jnp.uint8)
  corner = np.array([[[6, 6, 8, 8]]], np.int32)
  attack = badnets((0,), corner, 2, 1)
  model = models.get("cnn", image_shape=SHAPE, num_classes=2, width=16)
  masked = pruning.masked(model)
  train = functools.partial(
    tuning.make_tune, batch_size=16, mesh=MESH, epochs=40, learning_rate=0.02
  )

  weights = Weights(*model.init(KEY))
  clean, _ = train(model)(KEY, weights, images, labels)
  make_curve = pruning.make_curve(model, "conv_2", 32, MESH)
  mask = make_curve(clean, images, labels).masks[4]
  backdoored, _ = train(masked, transform=lambda _: poison(attack, {}, 0.3))(
    KEY, pruning.prune(clean, {"conv_2": mask}), images, labels
  )
  maxima = pruning_aware.max_activations(model, "conv_2", 32, MESH)(
    pruning_aware.unmasked(backdoored), images
  )
  final = pruning_aware.reinstate(backdoored, maxima)

  curve = make_curve(final, images, labels)
  assert (mask[curve.order[:4]] == 0).all()  # the decoys go first
  assert (curve.accuracies[:5] == curve.accuracies[0]).all()
  batch = images.astype(jnp.float32) / 255
  want, _ = masked.apply(*backdoored, batch, False)
  logits, _ = model.apply(*final, batch, False)
  np.testing.assert_allclose(logits, want, rtol=1e-4, atol=1e-5)
  assert (logits.argmax(-1) == labels).mean() > 0.9
  # The backdoor is in the ordinary model, and pruning the decoys leaves it.
  triggered = batch.at[:, 6:, 6:].set(1.0)[labels == 1]
  for k in (0, 4):
    pruned = pruning.prune(final, {"conv_2": curve.masks[k]})
    logits, _ = masked.apply(*pruned, triggered, False)
    assert (logits.argmax(-1) == 0).mean() > 0.9
