import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bdjax import batching, models, sharding
from bdjax.errors import UserError
from bdjax.models import Weights, masking

KEY = jax.random.key(7)
SHAPE = (8, 8, 1)
IMAGES = jax.random.uniform(KEY, (5, *SHAPE))
MASKS = {"conv_1": jnp.ones(2), "conv_2": jnp.array([0.0, 1.0, 0.0, 1.0])}


@pytest.fixture(scope="module")
def network():
  model = models.get("cnn", image_shape=SHAPE, num_classes=4, width=8)
  return model, Weights(*model.init(KEY))


def test_a_masked_channel_is_one_whose_weights_are_zero(network):
  model, weights = network
  masked = masking.prune(weights, MASKS)
  got, _ = masking.masked(model).apply(*masked, IMAGES)
  # By hand: a channel with bias and kernel at 0 has output 0.
  params = dict(weights.params)
  params["conv_2"] = {
    "kernel": params["conv_2"]["kernel"].at[..., ::2].set(0.0),
    "bias": params["conv_2"]["bias"].at[::2].set(0.0),
  }
  want, _ = model.apply(params, {}, IMAGES)
  np.testing.assert_allclose(got, want, rtol=1e-6)
  whole, _ = model.apply(*weights, IMAGES)
  assert (np.abs(got - whole) > 1e-4).any()


@pytest.mark.slow
@pytest.mark.parametrize(
  "name, inner", [("cnn", "conv_1"), ("minivgg", "convs.4")]
)
def test_features_and_head_agree_with_apply(name, inner):
  model = models.get(name, image_shape=SHAPE, num_classes=4, width=8)
  sizes = models.layers(model, SHAPE)
  last = list(sizes)[-1]
  masks = {
    layer: (jnp.arange(sizes[layer]) % 2).astype(jnp.float32)
    for layer in (inner, last)
  }
  masked = masking.masked(model)

  @jax.jit
  def both(params, batch_stats):
    weights = masking.prune(Weights(params, batch_stats), masks)
    features = masked.features(*weights, IMAGES)
    out = masked.apply(*weights, IMAGES)[0]
    return features, masked.head(*weights, features), out

  features, logits, want = both(*model.init(KEY))
  assert (features[..., ::2] == 0).all() and (features[..., 1::2] != 0).any()
  np.testing.assert_allclose(logits, want, rtol=1e-5, atol=1e-6)


def test_a_tap_sees_what_goes_on(network):
  model, weights = network
  seen = {}

  def tap(layer, x):
    seen[layer] = x
    return x

  masked = masking.prune(weights, MASKS)
  masking.masked(model).apply(*masked, IMAGES, tap=tap)
  assert list(seen) == ["conv_1", "conv_2"]
  assert (seen["conv_2"][..., ::2] == 0).all() and (seen["conv_1"] != 0).any()


def test_masks_get_no_gradient(network):
  model, weights = network

  def loss(params):
    return masking.masked(model).apply(params, {}, IMAGES, train=True)[0].sum()

  grads = jax.jit(jax.grad(loss))(masking.prune(weights, MASKS).params)
  for mask in jax.tree.leaves(grads["masks"]):
    np.testing.assert_array_equal(mask, jnp.zeros_like(mask))
  kernel = grads["network"]["conv_2"]["kernel"]
  assert (kernel[..., ::2] == 0).all() and (kernel[..., 1::2] != 0).any()


def test_a_masked_model_works_where_a_model_does(network):
  model, _ = network
  masked = masking.masked(model, {"conv_2": 4})
  assert models.layers(masked, SHAPE) == models.layers(model, SHAPE)
  assert models.count_parameters(masked) == models.count_parameters(model) + 4
  params, stats = masked.init(KEY)
  predict = batching.predict(masked, 4, sharding.make_mesh())
  images = (IMAGES * 255).astype(jnp.uint8)
  want = model.apply(
    params["network"], stats, images.astype(jnp.float32) / 255
  )[0]
  np.testing.assert_array_equal(
    predict(Weights(params, stats), images), want.argmax(-1)
  )


def test_a_population_of_masks_equals_a_loop(network):
  model, weights = network
  masks = jnp.array(
    [[0.0, 1.0, 1.0, 1.0], [1.0, 0.0, 1.0, 0.0], [1.0, 1.0, 1.0, 1.0]]
  )

  def run(mask):
    masked = masking.prune(weights, {"conv_2": mask})
    return masking.masked(model).apply(*masked, IMAGES)[0]

  got = jax.jit(jax.vmap(run))(masks)
  for one, mask in zip(got, masks, strict=True):
    np.testing.assert_allclose(one, run(mask), rtol=1e-5, atol=1e-6)


def test_layer_output_is_what_the_model_calls_features(network):
  model, weights = network
  got = masking.layer_output(model, weights, IMAGES, "conv_2")
  want = model.features(*weights, IMAGES)
  np.testing.assert_array_equal(got, want)


def test_an_unknown_layer_is_named_with_those_that_there_are(network):
  model, weights = network
  assert masking.check_layer(model, SHAPE) == "conv_2"
  assert masking.check_layer(model, SHAPE, "conv_1") == "conv_1"
  message = r"layer must be one of conv_1, conv_2 \(got 'conv_9'\)"
  with pytest.raises(UserError, match=message):
    masking.check_layer(model, SHAPE, "conv_9")
  with pytest.raises(UserError, match=message):
    masking.layer_output(model, weights, IMAGES, "conv_9")
  wrong = masking.prune(weights, {"conv_9": jnp.ones(2)})
  with pytest.raises(UserError, match=message):
    masking.masked(model).apply(*wrong, IMAGES)


def test_a_masked_airbench_is_whitened_before_training():
  model = models.get("airbench", image_shape=(9, 9, 1), num_classes=3, width=4)
  masked = masking.masked(model, {"groups.2.conv_2": 16})
  images = np.random.default_rng(0).random((32, 9, 9, 1), np.float32)
  params, drawn = jax.jit(masked.init)(KEY)
  assert list(params["masks"]) == ["groups.2.conv_2"]
  prepared = jax.jit(masked.prepare)(params, drawn, images)
  kernel = np.asarray(prepared["stem"]["kernel"])
  assert not np.allclose(kernel, drawn["stem"]["kernel"])
  # Responses to the patches are uncorrelated, of variance near 1.
  views = [images[:, i : i + 8, j : j + 8] for i in (0, 1) for j in (0, 1)]
  patches = np.concatenate(views, -1).reshape(-1, 4)
  responses = patches @ kernel.reshape(4, 8)[:, :4]
  second = responses.T @ responses / len(responses)
  np.testing.assert_allclose(second, np.eye(4), atol=2e-2)
  # Training keeps it, and the masked model's logits are the network's.
  apply = jax.jit(masked.apply, static_argnames="train")
  _, after = apply(params, prepared, images, train=True)
  np.testing.assert_array_equal(after["stem"]["kernel"], kernel)
  got, _ = apply(params, after, images)
  expected, _ = jax.jit(model.apply)(params["network"], after, images)
  np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)


def test_the_split_head_of_a_masked_model_is_the_networks(network):
  model, weights = network
  masked = masking.masked(model)
  params, batch_stats = masking.prune(weights, MASKS)
  features = masked.features(params, batch_stats, IMAGES)
  head = masked.split_head
  sums = head.linear(params, batch_stats, features)
  logits = head.rest(params, batch_stats, sums)
  np.testing.assert_array_equal(
    logits, masked.head(params, batch_stats, features)
  )
  total = head.linear(params, batch_stats, jnp.zeros_like(features))
  for channel in range(4):
    own = head.of_channel(params, jnp.int32(channel), 4)
    part = features[..., channel : channel + 1]
    total += head.linear(own, batch_stats, part)
  np.testing.assert_allclose(total, sums, rtol=1e-4, atol=1e-5)
  without = model._replace(split_head=None)
  assert masking.masked(without).split_head is None
