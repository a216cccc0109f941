import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bdjax import models, sharding
from bdjax.attacks.triggers import Trigger
from bdjax.defenses import fine_pruning, masking, pruning, tuning
from bdjax.models import Weights

KEY = jax.random.key(17)
SHAPE = (8, 8, 1)
MESH = sharding.make_mesh(jax.devices()[:1])
LABELS = jnp.arange(64, dtype=jnp.int32) % 4
# Noise, and brighter in the quadrant that the label names.
_BRIGHTER = jax.nn.one_hot(LABELS, 4, dtype=jnp.int32).reshape(64, 2, 2)
_BRIGHTER = _BRIGHTER.repeat(4, axis=1).repeat(4, axis=2)[..., None]
IMAGES = jax.random.randint(KEY, (64, *SHAPE), 0, 200)
IMAGES = (IMAGES + 55 * _BRIGHTER).astype(jnp.uint8)


@functools.cache
def trained():
  model = models.get("cnn", image_shape=SHAPE, num_classes=4, width=16)
  weights = Weights(*model.init(KEY))
  train = tuning.make_tune(model, 16, MESH, epochs=30, learning_rate=0.05)
  return model, train(KEY, weights, IMAGES, LABELS)[0]


def _accuracy(model, weights, images=IMAGES, labels=LABELS):
  images = images.astype(jnp.float32) / 255
  logits, _ = model.apply(*weights, images, False)
  return float((logits.argmax(-1) == labels).mean())


def test_value_mask_by_hand():
  params = {
    "conv": {
      "kernel": jnp.array([-4.0, -3.0, 0.0, 1.0, 4.0]).reshape(1, 1, 1, 5),
      "bias": jnp.array([-9.0]),
    },
    "linear": {"kernel": jnp.array([[-9.0, 9.0]])},
  }
  kept = jax.jit(fine_pruning.value_mask)(params, 0.125)
  # -4 + 8 / 8 = -3, and what equals the threshold goes too. Signed: 0 stays.
  assert kept["conv"]["kernel"].ravel().tolist() == [0, 0, 1, 1, 1]
  assert kept["conv"]["bias"].all() and kept["linear"]["kernel"].all()
  assert masking.pruned_share(kept) == pytest.approx(0.4)
  zeroed = masking.zero(params, kept)
  assert zeroed["conv"]["kernel"].ravel().tolist() == [0, 0, 0, 1, 4]
  assert zeroed["linear"]["kernel"].tolist() == [[-9, 9]]
  for percent, want in [(0.0, 0.2), (0.5, 0.6), (1.0, 1.0)]:
    kept = fine_pruning.value_mask(params, percent)
    assert masking.pruned_share(kept) == pytest.approx(want)


def test_value_masks_nest_and_vmap_equals_a_loop():
  params = {"kernel": jax.random.normal(KEY, (3, 3, 4, 8))}
  percents = jnp.linspace(0.0, 0.9, 7)
  got = jax.vmap(fine_pruning.value_mask, (None, 0))(params, percents)["kernel"]
  for i, percent in enumerate(percents):
    want = fine_pruning.value_mask(params, percent)["kernel"]
    np.testing.assert_array_equal(got[i], want)
  assert not (got[1:] & ~got[:-1]).any()  # none comes back
  assert got[0].sum() == 287 and got[-1].sum() < 29


def test_by_activation_prunes_to_the_floor_and_tunes():
  model, weights = trained()
  masked = pruning.masked(model)
  tune = tuning.make_tune(masked, 16, MESH, epochs=10, learning_rate=0.05)
  repair = fine_pruning.make_by_activation(
    model, "conv_2", 32, MESH, tune, drop=0.05
  )
  done = repair(KEY, weights, IMAGES, LABELS)
  accuracies = done.curve.accuracies
  assert accuracies[0] == _accuracy(model, weights) > 0.95
  # The first so far below; the mask is that one.
  fallen = accuracies[0] - accuracies >= 0.05
  assert 0 < done.channels == fallen.argmax() < 8
  mask = np.ones(8)
  mask[done.curve.order[: done.channels]] = 0
  for each in (done.pruned, done.tuned):
    np.testing.assert_array_equal(each.params["masks"]["conv_2"], mask)
  before = _accuracy(masked, done.pruned)
  assert before == pytest.approx(accuracies[done.channels])
  assert _accuracy(masked, done.tuned) > before
  assert done.metrics["loss"].shape == (40,)


@functools.cache
def _rounds(**settings):
  model, _ = trained()
  tune = tuning.make_tune(
    model, 16, MESH, epochs=1, learning_rate=1e-3, weight_decay=0.1
  )
  return fine_pruning.make_rounds(model, 32, MESH, tune, **settings)


def test_rounds_end_below_the_floor():
  model, weights = trained()
  run = list(_rounds(step=0.1, drop=0.02)(KEY, weights, IMAGES, LABELS))
  assert [r.number for r in run] == list(range(1, len(run) + 1))
  assert 1 < len(run) and not run[-1].accepted
  floor = _accuracy(model, weights) - 0.02
  for r in run:
    assert r.percent == pytest.approx(0.1 * r.number)
    assert r.accuracy == pytest.approx(_accuracy(model, r.weights))
    assert r.accepted == (r.accuracy >= floor) == (r is not run[-1])
    assert r.last == (r is run[-1]) and r.proxy is None


def test_pruned_weights_are_exactly_zero_after_every_round():
  _, weights = trained()
  run = list(_rounds(step=0.25, drop=1.0)(KEY, weights, IMAGES, LABELS))
  assert [r.percent for r in run] == [0.25, 0.5, 0.75] and run[-1].accepted
  for r in run:
    want = fine_pruning.value_mask(weights.params, r.percent)
    jax.tree.map(np.testing.assert_array_equal, r.mask, want)
    zeros, count = 0, 0
    for layer in ("conv_1", "conv_2"):
      kernel = np.asarray(r.weights.params[layer]["kernel"])
      kept = np.asarray(r.mask[layer]["kernel"])
      assert (kernel[~kept] == 0).all() and (kernel[kept] != 0).all()
      zeros, count = zeros + (kernel == 0).sum(), count + kernel.size
    assert r.pruned == pytest.approx(zeros / count)
  assert run[0].pruned < run[1].pruned < run[2].pruned
  moved = run[-1].weights.params["hidden"]["kernel"]
  assert (moved != weights.params["hidden"]["kernel"]).mean() > 0.5


def test_going_on_after_a_round_equals_an_unbroken_run():
  _, weights = trained()
  rounds = _rounds(step=0.25, drop=1.0)
  whole = list(rounds(KEY, weights, IMAGES, LABELS))
  rest = list(rounds(KEY, weights, IMAGES, LABELS, start=whole[0]))
  jax.tree.map(np.testing.assert_array_equal, rest, whole[1:])
  assert list(rounds(KEY, weights, IMAGES, LABELS, start=whole[-1])) == []


def test_the_proxy_is_measured_on_the_defenders_images_of_other_classes():
  model, weights = trained()
  # The upper right quadrant is white: everything looks like label 1.
  trigger = Trigger(
    jnp.zeros((8, 8, 1)).at[:4, 4:].set(1.0),
    jnp.zeros(SHAPE).at[:4, 4:].set(1.0),
  )
  suspect = fine_pruning.Suspect(trigger, 1)
  rounds = _rounds(step=0.25, drop=1.0, proxy_goal=0.0)
  run = list(rounds(KEY, weights, IMAGES, LABELS, suspect))
  stamped = IMAGES.at[:, :4, 4:].set(255)[LABELS != 1]
  for r in run:
    want = _accuracy(model, r.weights, stamped, jnp.int32(1))
    assert r.proxy == pytest.approx(want)
  assert run[0].proxy > 0.9
  # A goal that the first round reaches ends the loop there.
  rounds = _rounds(step=0.25, drop=1.0, proxy_goal=1.0)
  (only,) = rounds(KEY, weights, IMAGES, LABELS, suspect)
  assert only.last and only.accepted
