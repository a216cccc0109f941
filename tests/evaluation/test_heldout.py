"""Tests of the held-out evaluator, on a network known by heart."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toy_networks import (
  BRIGHT,
  MODEL,
  TEST,
  evaluator,
  gray_images,
  weights,
)

from bdjax import metrics, models
from bdjax.attacks import Attack, TriggerVariables
from bdjax.errors import UserError
from bdjax.evaluation import TriggeredSet, share


def _gray(args, key, images):
  del args, key
  return jnp.round(images[:, 0, 0, 0] * 255).astype(jnp.int32)


def test_clean_images_come_in_the_order_of_the_labels():
  held_out = evaluator()
  assert held_out.has_attack and held_out.targets == [2]
  assert held_out.knows_labels
  np.testing.assert_array_equal(held_out.labels, TEST.labels)
  got = held_out.on_clean(_gray, None)
  np.testing.assert_array_equal(got, 10 * TEST.labels)
  scaled = held_out.on_clean(lambda args, key, x: args * x.sum((1, 2, 3)), 2.0)
  np.testing.assert_allclose(scaled, 40 * TEST.labels / 255, rtol=1e-5)


def test_triggered_images_are_those_that_may_be():
  out = evaluator().on_triggered(_gray, None)
  assert out.labels.tolist() == [0, 0, 0, 1, 1, 3, 3]
  assert (out.targets == 2).all() and (out.outputs == 255).all()


def test_the_attack_s_variables_reach_its_trigger():
  attack = Attack(
    jnp.array([2]),
    lambda variables, key, images, index: (
      0 * images + variables.params["gray"] / 255
    ),
  )
  variables = TriggerVariables({"gray": jnp.float32(7)}, {})
  held_out = evaluator(attack, variables=variables)
  assert (held_out.on_triggered(_gray, None).outputs == 7).all()


def test_a_limit_draws_images_by_the_key():
  test = gray_images(np.arange(200) % 4)
  few, again, other = (
    evaluator(test=test, limit=limit) for limit in (40, 40, None)
  )
  assert len(few.labels) == 40 and len(other.labels) == 200
  np.testing.assert_array_equal(few.images, again.images)
  np.testing.assert_array_equal(few.on_clean(_gray, None), 10 * few.labels)
  # Drawn from all, not the first ones: 20 of each half; 4 sd are 12.
  numbered = test._replace(labels=np.arange(200, dtype=np.int32))
  rows = evaluator(test=numbered, limit=40).labels
  assert len(set(rows.tolist())) == 40 and 8 < (rows < 100).sum() < 32
  assert (np.diff(rows) > 0).all()
  assert len(evaluator(test=test, limit=500).labels) == 200


def test_chunks_and_batches_do_not_matter():
  test = gray_images(np.arange(603) % 4)
  held_out = evaluator(test=test)
  for batch_size in (7, 250, None):
    got = held_out.on_clean(_gray, None, batch_size)
    np.testing.assert_array_equal(got, 10 * test.labels)
    triggered = held_out.on_triggered(_gray, None, batch_size)
    np.testing.assert_array_equal(
      triggered.labels, test.labels[test.labels != 2]
    )


def test_scores_by_hand():
  held_out = evaluator()
  assert held_out.scores(MODEL, weights(backdoor=2)) == {
    "clean_accuracy": metrics.proportion(1.0, 10),
    "attack_success_rate": metrics.proportion(1.0, 7),
    "robust_accuracy": metrics.proportion(0.0, 7),
  }
  # Without the backdoor, and blind for the two images of 3.
  assert held_out.scores(MODEL, weights(blind=3)) == {
    "clean_accuracy": metrics.proportion(0.8, 10),
    "attack_success_rate": metrics.proportion(0.0, 7),
    "robust_accuracy": metrics.proportion(5 / 7, 7),
  }


def test_a_network_is_compiled_once_however_many_weights_it_has():
  traced = []

  def apply(*args, **kwargs):
    traced.append(args)
    return MODEL.apply(*args, **kwargs)

  model, held_out = MODEL._replace(apply=apply), evaluator()
  held_out.scores(model, weights(backdoor=2))
  count = len(traced)
  held_out.scores(model, weights(blind=1))
  held_out.scores(model._replace(features=None), weights())
  assert len(traced) == count
  # Another network is another program.

  def zeros(params, batch_stats, images, **kwargs):
    del params, kwargs
    return jnp.zeros((images.shape[0], 4)), batch_stats

  other = held_out.scores(MODEL._replace(apply=zeros), weights())
  assert other["clean_accuracy"].mean == pytest.approx(0.3)


def test_networks_of_the_library_are_scored():
  model = models.get("cnn", image_shape=(8, 8, 1), num_classes=4, width=4)
  images = np.zeros((6, 8, 8, 1), np.uint8)
  test = TEST._replace(images=images, labels=np.arange(6, dtype=np.int32) % 4)
  trained = models.Weights(*jax.jit(model.init)(jax.random.key(0)))
  scores = evaluator(BRIGHT, test).scores(model, trained)
  # All images are black, so of one label.
  assert scores["clean_accuracy"].mean in (1 / 3, 1 / 6)
  assert set(scores) == {
    "clean_accuracy", "attack_success_rate", "robust_accuracy",
  }  # fmt: skip


def test_a_clean_network_has_no_attack():
  held_out = evaluator(None)
  assert not held_out.has_attack and held_out.targets == []
  assert not held_out.knows_labels
  assert set(held_out.scores(MODEL, weights())) == {"clean_accuracy"}


def test_no_image_that_can_be_triggered():
  held_out = evaluator(test=gray_images([2, 2]))
  with pytest.raises(UserError, match="eval_images must be larger"):
    held_out.on_triggered(_gray, None)


GIVEN = TriggeredSet(
  np.full((5, 1, 2, 1), 255, np.uint8),
  np.array([2, 2, 2, 1, 1], np.int32),
  np.array([0, 0, 1, 1, 1], np.int32),
  ("square", "sticker"),
)


def test_triggered_images_that_were_given():
  held_out = evaluator(None, triggered=GIVEN)
  assert held_out.has_attack and held_out.targets == [1, 2]
  assert not held_out.knows_labels
  out = held_out.on_triggered(_gray, None)
  assert out.outputs.tolist() == [255] * 5 and out.labels.tolist() == [-1] * 5
  np.testing.assert_array_equal(out.targets, GIVEN.targets)
  scores = held_out.scores(MODEL, weights(backdoor=2))
  assert scores == {
    "clean_accuracy": metrics.proportion(1.0, 10),
    "attack_success_rate": metrics.proportion(0.6, 5),
    "attack_success_rate_square": metrics.proportion(1.0, 2),
    "attack_success_rate_sticker": metrics.proportion(1 / 3, 3),
  }
  few = evaluator(None, triggered=GIVEN, limit=3)
  assert len(few.on_triggered(_gray, None).targets) == 3


def test_shares_of_a_trigger_of_which_none_was_drawn():
  one = GIVEN._replace(trigger=np.zeros(5, np.int32))
  held_out = evaluator(None, triggered=one)
  hits = np.array([True, False, True, True, True])
  assert set(held_out.shares("far", hits)) == {"far", "far_square"}
  alone = evaluator(None, triggered=one._replace(names=("square",)))
  assert alone.shares("far", hits) == {"far": metrics.proportion(0.8, 5)}
  assert share(hits) == metrics.proportion(0.8, 5)
