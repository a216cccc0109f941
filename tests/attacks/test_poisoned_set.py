"""Tests of poisoned data sets, by hand-made attacks."""

import jax.numpy as jnp
import numpy as np
import pytest
from attack_cases import KEY, NO_VARIABLES, TOYS, WHITE, gray

from bdjax.attacks.poisoned_set import poison_dataset, stamp_images
from bdjax.batch import POISONED
from bdjax.errors import UserError


def _numbered(total):
  """Return images whose gray is their number, and labels in turn."""
  gray = np.arange(total).astype(np.uint8)[:, None, None, None]
  images = np.broadcast_to(gray, (total, 2, 2, 1)).copy()
  return images, np.arange(total, dtype=np.int32) % 4


def test_stored_images_are_triggered_in_order_and_rounded():
  def add_index(variables, key, images, index):
    del variables, key  # 0.4 of a gray is rounded off, 0.6 rounded up
    added = (index.astype(jnp.float32) + 0.4) / 255
    return images + added[:, None, None, None]

  images = np.arange(1203).astype(np.uint8)[:, None, None, None] % 200
  index = (np.arange(1203) % 3).astype(np.int32)
  out = stamp_images(add_index, NO_VARIABLES, KEY, images, index)  # 3 chunks
  assert out.dtype == np.uint8
  np.testing.assert_array_equal(out[:, 0, 0, 0], images[:, 0, 0, 0] + index)


def test_a_poisoned_set_is_drawn_over_all_images():
  images, labels = _numbered(240)
  out = poison_dataset(WHITE, NO_VARIABLES, KEY, images, labels, 0.5)
  poisoned = out.roles == POISONED
  assert poisoned.sum() == 120 and (out.images[poisoned] == 255).all()
  # Of 180 eligible ones; four standard deviations of each half's are 27.
  assert abs(int(poisoned[:120].sum()) - 60) < 27


def test_a_share_of_the_target_class():
  method = TOYS["toy_clean_label"]
  attack = method.make(method.settings().filled("digits"), (2, 2, 1), 4)
  images, labels = _numbered(80)
  out = poison_dataset(
    attack, NO_VARIABLES, KEY, images, labels, None, class_rate=0.35
  )
  poisoned = out.roles == POISONED
  assert poisoned.sum() == 7  # of 20 images of class 0
  assert (labels[poisoned] == 0).all()
  np.testing.assert_array_equal(out.labels, labels)
  settings = method.settings(class_rate=0.35).filled("digits")
  assert settings.poison_rate is None
  with pytest.raises(UserError, match="class_rate and poison_rate"):
    method.settings(class_rate=0.35, poison_rate=0.1).filled("digits")


def test_more_than_may_be_poisoned():
  images, labels = _numbered(80)
  words = r"poison_rate must be at most 0.75 \(got 0.8\): .* 64 images, and 60"
  with pytest.raises(UserError, match=words):
    poison_dataset(WHITE, NO_VARIABLES, KEY, images, labels, 0.8)


def test_more_covers_than_images_are_left():
  attack = WHITE._replace(
    cover=gray(0.5), cover_rate=0.5, cover_sources=jnp.arange(4) == 2
  )
  images, labels = _numbered(80)
  with pytest.raises(UserError, match="cover_rate must be at most 0.25"):
    poison_dataset(attack, NO_VARIABLES, KEY, images, labels, 0.1)
  out = poison_dataset(attack, NO_VARIABLES, KEY, images, labels, 0.0)
  assert not out.roles.any()
