"""Poisoned batches of the four attacks of version 0.1.0: the same bits still.

The constants were computed with that version's code, from 64 images of noise.
"""

import hashlib

import jax
import numpy as np
import pytest

from bdjax.attacks import ATTACKS
from bdjax.attacks.poisoning import poison_batch
from bdjax.batch import Batch

KEY = jax.random.key(7)
SHAPE, CLASSES = (12, 10, 3), 4


def _poison(name, **given):
  """Return the clean images and the batch poisoned at rate 0.5."""
  method = ATTACKS[name]
  settings = method.settings(trigger_size=3, **given).filled("cifar10")
  attack = method.make(settings, SHAPE, CLASSES)
  numbers = np.random.default_rng(0)
  images = numbers.integers(0, 256, (64, *SHAPE), dtype=np.uint8)
  images = images.astype(np.float32) / np.float32(255)
  labels = np.arange(64, dtype=np.int32) % CLASSES
  clean = Batch(images, labels, np.zeros(64, np.int8))

  @jax.jit
  def run(batch):
    variables = attack.init(KEY)
    return poison_batch(attack, variables, KEY, batch, 0.5).batch

  return images, jax.device_get(run(clean))


def _sha256(*arrays):
  return hashlib.sha256(b"".join(x.tobytes() for x in arrays)).hexdigest()


@pytest.mark.parametrize(
  "name, given, expected",
  [
    (
      "badnets",
      {"target_labels": "2", "locations": "corner"},
      "faa9ef5c23fcaa95ea778eac06da533f76f3a64926fe3200ca2c3fad334c86c4",
    ),
    (
      "badnets",
      {"all_to_all": True},
      "cc6fed3a7750a2ea93ca585222bc92f341313d66121cabb190bd0c087a8da956",
    ),
    (
      "badnets",
      {"target_labels": "3,1"},
      "97590a91d10bac330fd39fd699d4dfe09612cb5bf0f0286db0d6b960f816aa04",
    ),
    (
      "random_backdoor",
      {"target_labels": "2"},
      "a3527d90f59e733e53b3a860be8a0c7eb89e5fcd248f86018794bd1664b6dfe5",
    ),
    (
      "random_backdoor",
      {"target_labels": "all"},
      "7c9bf3e35f47aeddf1ad82f61c689e0896972dff84240325a10c3f6591f9ada3",
    ),
  ],
)
def test_images_labels_and_roles_of_fixed_and_random_squares(
  name, given, expected
):
  _, batch = _poison(name, **given)
  assert _sha256(batch.images, batch.labels, batch.roles) == expected


# A generator's matrix products are rounded as the compiler pleases, so its
# pixels are compared as numbers: the first poisoned image, three of the first
# row of its trigger, and the sum of all.
@pytest.mark.parametrize(
  "name, given, places, first, pixels, total",
  [
    (
      "ban",
      {"target_labels": "2"},
      "2ad10e11ba5326a9c2b9fe79559c9b508fcbc24523601616967474ee1d7ab621",
      (3, 5, 3),
      [0.6372867, 0.9611779, 0.6940527],
      11492.2375262,
    ),
    (
      "ban",
      {"target_labels": "all"},
      "d3e6b5f4de5dd9ca5257d5630f42c001ac67158fe34ef31e74d326537fc2de5c",
      (2, 0, 0),
      [0.07445158, 0.9996706, 0.989106],
      11480.2835094,
    ),
    (
      "cban",
      {},
      "0adb1a29f73ac50ccc00a0f21a2f2751a17c087de556517a1be1a649ad3f3246",
      (2, 2, 0),
      [0.40099782, 0.5547637, 0.00863298],
      11534.2126450,
    ),
    (
      "cban",
      {"target_labels": "3,1"},
      "64b3cc05abfa947932227da029524ee2df74a9449f3766426f6ce795ab3198b1",
      (2, 2, 0),
      [0.8322055, 0.9186412, 0.09194942],
      11539.0613927,
    ),
  ],
)
def test_places_labels_roles_and_pixels_of_generated_squares(
  name, given, places, first, pixels, total
):
  images, batch = _poison(name, **given)
  changed = (batch.images != images).any(-1)
  assert _sha256(changed, batch.labels, batch.roles) == places
  row, top, left = first
  np.testing.assert_allclose(
    batch.images[row, top, left : left + 3, 0], pixels, atol=2e-6
  )
  assert batch.images.sum(dtype=np.float64) == pytest.approx(total, abs=1e-4)
