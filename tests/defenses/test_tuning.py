import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bdjax import models, sharding
from bdjax.defenses import tuning
from bdjax.errors import UserError
from bdjax.models import Weights
from bdjax.models.masking import masked, prune

KEY = jax.random.key(13)
SHAPE = (8, 8, 1)
MESH = sharding.make_mesh(jax.devices()[:1])
LABELS = jnp.arange(64, dtype=jnp.int32) % 2
# Noise, and brighter in the half that the label names.
_BRIGHTER = jnp.repeat(jax.nn.one_hot(LABELS, 2, dtype=jnp.int32), 4, axis=1)
IMAGES = jax.random.randint(KEY, (64, *SHAPE), 0, 200)
IMAGES = (IMAGES + 55 * _BRIGHTER[:, None, :, None]).astype(jnp.uint8)


def _network(name="cnn"):
  model = models.get(name, image_shape=SHAPE, num_classes=2, width=8)
  return model, Weights(*jax.jit(model.init)(KEY))


@functools.cache
def _tune(**settings):
  model, _ = _network()
  settings = {"epochs": 3, "learning_rate": 0.1} | settings
  return tuning.compile_tuning(model, 16, MESH, **settings)


def _same(left, right):
  jax.tree.map(np.testing.assert_array_equal, left, right)


@pytest.mark.slow
def test_one_step_by_hand():
  # One batch of all images; Nesterov's first step is 1 + momentum gradients.
  model, weights = _network()
  tune = tuning.compile_tuning(
    model, 64, MESH, epochs=1, learning_rate=0.1, weight_decay=0.01
  )
  tuned, metrics = tune(KEY, weights, IMAGES, LABELS)
  images = IMAGES.astype(jnp.float32) / 255

  def loss(params):
    logits, _ = model.apply(params, {}, images, train=True)
    return optax.softmax_cross_entropy_with_integer_labels(
      logits, LABELS
    ).mean()

  value, grads = jax.value_and_grad(loss)(weights.params)
  np.testing.assert_allclose(metrics["loss"], [value], rtol=1e-5)
  decay = {"kernel": 0.01, "bias": 0.0}
  for layer, leaves in weights.params.items():
    for name, old in leaves.items():
      want = old - 0.19 * (grads[layer][name] + decay[name] * old)
      np.testing.assert_allclose(
        tuned.params[layer][name], want, rtol=1e-4, atol=1e-6
      )


def test_tuning_learns_and_metrics_are_of_every_step():
  _, weights = _network()
  tune = _tune(epochs=20, schedule="cosine")
  _, metrics = tune(KEY, weights, IMAGES, LABELS)
  assert metrics["loss"].shape == (80,)
  assert metrics["clean_correct"][-4:].sum() > 55
  assert metrics["loss"][-4:].mean() < metrics["loss"][:4].mean() / 2


def test_every_image_is_seen_once_an_epoch():
  rows = tuning.batch_rows(KEY, 35, 8, 3)
  assert rows.shape == (12, 8)  # three images are left out of each epoch
  epochs = np.asarray(rows).reshape(3, 32)
  assert all(len(set(epoch.tolist())) == 32 for epoch in epochs)
  assert (epochs[0] != epochs[1]).any()


@pytest.mark.slow
def test_pruned_weights_stay_exactly_zero():
  # Momentum and weight decay are on: neither moves them.
  _, weights = _network()
  mask = jax.tree.map(lambda x: jnp.ones(x.shape, bool), weights.params)
  mask["conv_2"]["kernel"] = jax.random.bernoulli(
    KEY, 0.5, mask["conv_2"]["kernel"].shape
  )
  # Not zero and yet held, against weight decay; a scalar stands for all.
  mask["hidden"] = {"kernel": jnp.bool_(False), "bias": jnp.bool_(False)}
  params = dict(weights.params)
  kernel = params["conv_2"]["kernel"]
  params["conv_2"] = params["conv_2"] | {
    "kernel": jnp.where(mask["conv_2"]["kernel"], kernel, 0.0)
  }
  pruned = weights._replace(params=params)
  tuned, _ = _tune(weight_decay=0.1)(KEY, pruned, IMAGES, LABELS, mask)
  kept = np.asarray(mask["conv_2"]["kernel"])
  got = np.asarray(tuned.params["conv_2"]["kernel"])
  assert (got[~kept] == 0).all()
  assert (got[kept] != kernel[kept]).mean() > 0.9
  _same(tuned.params["hidden"], weights.params["hidden"])
  # The mask is what does it.
  free, _ = _tune(weight_decay=0.1)(KEY, pruned, IMAGES, LABELS)
  got = np.asarray(free.params["conv_2"]["kernel"])
  assert (got[~kept] != 0).mean() > 0.9


def test_pruned_channels_stay_pruned():
  model, weights = _network()
  masks = {"conv_2": jnp.array([0.0, 1.0, 1.0, 0.0])}
  pruned = prune(weights, masks)
  tune = tuning.compile_tuning(
    masked(model),
    16,
    MESH,
    epochs=3,
    learning_rate=0.1,
    weight_decay=0.1,
  )
  tuned, _ = tune(KEY, pruned, IMAGES, LABELS)
  _same(tuned.params["masks"], masks)
  old, new = (x.params["network"] for x in (pruned, tuned))
  assert (old["conv_2"]["bias"] == new["conv_2"]["bias"])[
    jnp.array([0, 3])
  ].all()
  assert (old["conv_2"]["bias"] != new["conv_2"]["bias"])[1:3].any()
  assert (old["hidden"]["kernel"] != new["hidden"]["kernel"]).any()


@pytest.mark.slow
def test_batch_statistics_move_on_to_the_defenders_data():
  model, weights = _network("minivgg")
  tune = tuning.compile_tuning(model, 64, MESH, epochs=1, learning_rate=0.0)
  tuned, _ = tune(KEY, weights, IMAGES, LABELS)
  _same(tuned.params, weights.params)
  out = jax.lax.conv_general_dilated(
    IMAGES.astype(jnp.float32) / 255,
    weights.params["convs"][0]["kernel"],
    (1, 1),
    "SAME",
    dimension_numbers=("NHWC", "HWIO", "NHWC"),
  )
  got = tuned.batch_stats["norms"][0]["mean"]
  want = 0.1 * out.mean((0, 1, 2))  # from 0, with momentum 0.9
  np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_a_population_equals_a_loop():
  _, weights = _network()
  keys = jax.random.split(KEY, 2)
  tune = _tune()
  got, _ = jax.vmap(tune, (0, None, None, None))(keys, weights, IMAGES, LABELS)
  for i, key in enumerate(keys):
    want, _ = tune(key, weights, IMAGES, LABELS)
    jax.tree.map(
      lambda x, y, i=i: np.testing.assert_allclose(
        x[i], y, rtol=1e-3, atol=1e-5
      ),
      got,
      want,
    )


def test_too_few_images():
  _, weights = _network()
  message = r"batch_size must be at most 15, .* \(got 16\)"
  with pytest.raises(UserError, match=message):
    _tune()(KEY, weights, IMAGES[:15], LABELS[:15])
