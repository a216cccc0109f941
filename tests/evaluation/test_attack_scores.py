"""Tests of the scores of an attack, on a network known by heart."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toy_networks import BRIGHT, CLASSES, KEY, MODEL, TEST, bright, weights

from bdjax import metrics, sharding
from bdjax.attacks import (
  Attack,
  Patch,
  TriggerVariables,
  patch_attack,
)
from bdjax.attacks.patches import Trigger
from bdjax.evaluation import (
  attack_scores,
  compile_predictors,
  sample_triggers,
  trigger_diversity,
)

NO_VARIABLES = TriggerVariables({}, {})
MESH = sharding.make_mesh(jax.devices()[:1])


def _scores(attack, backdoor=-1, blind=-1, **kwargs):
  return attack_scores(
    KEY, MODEL, weights(backdoor, blind), TEST, CLASSES, attack, mesh=MESH,
    **kwargs,
  )  # fmt: skip


def test_a_clean_network():
  scores = _scores(None, blind=3)
  assert scores.measured == {"clean_accuracy": metrics.proportion(0.8, 10)}
  assert scores.details == {} and scores.matrix is None


def test_a_backdoor_by_hand():
  # Of seven images that are not of label 2, all are led to it.
  scores = _scores(BRIGHT, backdoor=2)
  assert scores.measured == {
    "clean_accuracy": metrics.proportion(1.0, 10),
    "attack_success_rate": metrics.proportion(1.0, 7),
    "robust_accuracy": metrics.proportion(0.0, 7),
  }
  nan = np.nan
  np.testing.assert_array_equal(scores.matrix, [[1, 1, nan, 1]])
  assert scores.details == {
    "target_labels": [2],
    "attack_success_rate_per_target": [1.0],
    "attack_success_rate_per_draw": [1.0],
    "robust_accuracy_per_target": [0.0],
    "robust_accuracy_per_draw": [0.0],
    "source_target_matrix": [[1.0, 1.0, None, 1.0]],
  }
  json.dumps(scores.details, allow_nan=False)


def test_no_backdoor_by_hand():
  # Triggered images keep their label, but for the two of 3, taken for 0.
  measured = _scores(BRIGHT, blind=3).measured
  assert measured["clean_accuracy"].mean == 0.8
  assert measured["attack_success_rate"] == metrics.proportion(0.0, 7)
  assert measured["robust_accuracy"] == metrics.proportion(5 / 7, 7)


def test_several_targets_and_draws_by_hand():
  def to_label(variables, key, images, index):
    """Name the target in the second pixel, for one of both targets."""
    del variables, key
    gray = jnp.where(index == 0, 0.0, 30 / 255)
    triggered = bright(None, None, images, index)
    return triggered.at[:, 0, 1, 0].set(gray)

  attack = Attack(jnp.array([1, 3]), to_label)
  # The network reads 0 for the first target, and 3 for the second.
  scores = _scores(attack, draws=2)
  asr = scores.measured["attack_success_rate"]
  assert (asr.mean, asr.n) == (0.5, 10)  # 0 of eight and 1 of eight, twice
  details = scores.details
  assert details["attack_success_rate_per_target"] == [0.0, 1.0]
  assert details["attack_success_rate_per_draw"] == [0.5, 0.5]
  # To 1 three of eight are of label 0; to 3 none of eight of label 3.
  assert details["robust_accuracy_per_target"] == [0.375, 0.0]
  nan = np.nan
  np.testing.assert_array_equal(scores.matrix, [[0, nan, 0, 0], [1, 1, 1, nan]])


def test_all_to_all_counts_only_its_sources():
  sources = jnp.roll(jnp.eye(4, dtype=bool), -1, axis=1)
  attack = Attack(jnp.arange(4), bright, sources=sources)
  scores = _scores(attack, backdoor=1)
  # Only images of 0 shall become 1.
  assert scores.details["attack_success_rate_per_target"] == [0, 1, 0, 0]
  assert scores.measured["attack_success_rate"].n == 10
  assert np.isfinite(scores.matrix).sum() == 4


def test_covers_by_hand():
  def darker(variables, key, images, index):
    return images * 0.0

  attack = BRIGHT._replace(cover=darker, cover_rate=0.1)
  measured = _scores(attack, backdoor=2).measured
  # Black is label 0, which three of ten images are.
  assert measured["cover_accuracy"] == metrics.proportion(0.3, 10)
  # Of the five images of 0 and 1 alone, where only these are covers.
  attack = attack._replace(cover_sources=jnp.arange(4) < 2)
  measured = _scores(attack, backdoor=2).measured
  assert measured["cover_accuracy"] == metrics.proportion(0.6, 5)


def test_the_trigger_of_the_test_is_scored():
  attack = BRIGHT._replace(apply=lambda *args: args[2], apply_test=bright)
  measured = _scores(attack, backdoor=2).measured
  assert measured["attack_success_rate"].mean == 1.0


def test_compiled_predictors_serve_several_networks():
  predictors = compile_predictors(MODEL, BRIGHT, MESH, 4)
  assert predictors.covers is None
  for backdoor, rate in ((2, 1.0), (-1, 0.0)):
    scores = _scores(BRIGHT, backdoor, predictors=predictors)
    assert scores.measured["attack_success_rate"].mean == rate
  assert compile_predictors(MODEL, None, MESH).triggered is None


def _patches(draw, side=2, alpha=None):
  boxes = jnp.array([[[0, 0, 4, 4]]] * 2)
  return patch_attack((0, 1), Patch(draw, boxes, (side, side), alpha))


def _uniform(variables, key, index):
  return jax.random.uniform(key, (index.shape[0], 2, 2, 1))


IMAGES = np.zeros((3, 4, 4, 1), np.uint8)


def test_sampled_triggers_are_of_each_target():
  def by_target(variables, key, index):
    gray = index.astype(jnp.float32)[:, None, None, None] / 2
    return jnp.broadcast_to(gray, (index.shape[0], 2, 2, 1))

  masks, patterns = sample_triggers(
    _patches(by_target), NO_VARIABLES, KEY, IMAGES, 5
  )
  assert masks.shape == patterns.shape == (2, 5, 2, 2, 1)
  assert (patterns[0] == 0).all() and (patterns[1] == 0.5).all()


def test_input_aware_triggers_are_sampled_for_images_in_turn():
  def own(variables, key, images, index):
    return Trigger(jnp.ones_like(images), images)

  attack = Attack(jnp.array([0]), bright, draw_trigger=own)
  images = np.arange(3, dtype=np.uint8)[:, None, None, None] * 51
  _, patterns = sample_triggers(attack, NO_VARIABLES, KEY, images, 5)
  grays = patterns[0, :, 0, 0, 0]
  np.testing.assert_allclose(grays, [0, 0.2, 0.4, 0, 0.2], rtol=1e-6)


def test_diversity_by_hand():
  diversity = functools.partial(
    trigger_diversity, variables=NO_VARIABLES, key=KEY, images=IMAGES
  )

  def fixed(variables, key, index):
    return jnp.full((index.shape[0], 2, 2, 1), 0.25)

  def coins(variables, key, index):
    return jnp.round(_uniform(variables, key, index))

  assert diversity(_patches(fixed)) == 0.0
  assert diversity(_patches(_uniform)) == pytest.approx(1.0, abs=0.05)
  # A coin's variance is 1/4, three times a uniform number's.
  assert diversity(_patches(coins)) == pytest.approx(3**0.5, abs=0.05)
  # Only half of the pixels are seen, and these alone count.
  half = jnp.array([[[1.0], [0.0]], [[1.0], [0.0]]])

  def one_side(variables, key, index):
    drawn = _uniform(variables, key, index)
    return drawn.at[:, :, 1].set(0.0)

  seen = diversity(_patches(one_side, alpha=half))
  assert seen == pytest.approx(1.0, abs=0.05)
  invisible = diversity(_patches(_uniform, alpha=jnp.zeros((2, 2, 1))))
  assert invisible == 0.0


def test_diversity_is_among_the_details():
  attack = BRIGHT._replace(
    draw_trigger=lambda variables, key, images, index: Trigger(
      jnp.ones_like(images), jnp.ones_like(images)
    )
  )
  assert _scores(attack).details["trigger_diversity"] == 0.0
