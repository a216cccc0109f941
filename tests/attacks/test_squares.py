"""Tests of the attacks by squares that are drawn anew for every image."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from attack_cases import KEY, compile_poison, init, make

from bdjax.attacks import patches
from bdjax.batch import Batch

DRAWN = ("random_backdoor", "ban", "cban")


@pytest.mark.parametrize("name", ["random_backdoor", "ban", "badnets"])
def test_regions_name_the_label(name):
  attack = make(name, target_labels="3,0,2,1", trigger_size=2)
  gray = np.full((200, 12, 10, 1), 0.5, np.float32)
  batch = Batch(gray, np.zeros(200, np.int32), np.zeros(200, np.int8))
  out = compile_poison(attack)(init(attack), KEY, batch, 1.0).batch
  regions = patches.grid(4, 12, 10)[:, 0]
  boxes = dict(zip((3, 0, 2, 1), regions, strict=True))
  assert set(out.labels.tolist()) == {1, 2, 3}
  for image, label in zip(out.images, out.labels.tolist(), strict=True):
    rows, cols, _ = np.nonzero(image != 0.5)
    top, left, bottom, right = boxes[label]
    assert top <= rows.min() and rows.max() < bottom
    assert left <= cols.min() and cols.max() < right


@pytest.mark.parametrize("name", DRAWN)
def test_every_image_gets_a_trigger_of_its_own(name):
  attack = make(name, target_labels="0,1", trigger_size=2)
  images = np.zeros((64, 12, 10, 1), np.float32)
  index = np.zeros(64, np.int32)
  mask, pattern = jax.jit(attack.draw_trigger)(init(attack), KEY, images, index)
  assert mask.shape == pattern.shape == (64, 2, 2, 1) and (mask == 1).all()
  assert len(np.unique(np.asarray(pattern).reshape(64, -1), axis=0)) == 64


def test_random_squares_are_uniform():
  attack = make("random_backdoor", trigger_size=8)
  images, index = np.zeros((64, 12, 10, 1)), np.zeros(64, np.int32)
  _, pattern = attack.draw_trigger(init(attack), KEY, images, index)
  counts, _ = np.histogram(pattern, 8, (0, 1))
  # 512 in each bin of 4096; four standard deviations are 85.
  assert abs(counts - 512).max() < 85


def test_cban_depends_on_the_label_and_ban_does_not():
  for name, differs in (("ban", False), ("cban", True)):
    attack = make(name, target_labels="0,1", trigger_size=2)
    variables, draw = init(attack), jax.jit(attack.draw_trigger)
    images = np.zeros((3, 12, 10, 1), np.float32)
    zero, one = (
      draw(variables, KEY, images, np.full(3, i, np.int32)) for i in (0, 1)
    )
    assert bool((zero.pattern != one.pattern).any()) is differs


@pytest.mark.parametrize("name", ["ban", "cban"])
def test_the_diversity_loss_is_weighted_and_can_be_left_out(name):
  assert make(name, diversity=0.0).loss is None
  losses = []
  for weight in (0.1, 0.3):
    attack = make(name, diversity=1.0, diversity_weight=weight)
    loss = jax.jit(attack.loss)(init(attack), KEY, jnp.zeros((1, 12, 10, 1)))
    losses.append(float(loss))
  assert losses[0] > 0
  assert losses[1] == pytest.approx(3 * losses[0], rel=1e-5)
