import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bdjax.defenses.fine_pruning.method import fine_pruning
from bdjax.defenses.strip import calibrate
from bdjax.defenses.strip_fine_pruning import (
  StripFinePruningSettings,
  strip_fine_pruning,
)
from bdjax.errors import UserError

KEY = jax.random.key(2)
SETTINGS = StripFinePruningSettings(overlays=5, frr="0.4", epochs=2)


@pytest.mark.slow
def test_rejected_images_are_refused_and_others_get_the_repaired_label(
  defender,
):
  (path,) = strip_fine_pruning(defender, SETTINGS)
  assert path.refuses and path.points == {"": 0}
  strip_key, repair_key = jax.random.split(defender.key)
  (detector,) = calibrate(defender._replace(key=strip_key), SETTINGS)
  repaired = fine_pruning(defender._replace(key=repair_key), SETTINGS)[-1]
  images = defender.images.astype(jnp.float32) / 255
  (threshold,) = detector.thresholds.values()
  rejected = detector.score(detector.args, KEY, images) > threshold
  labels = repaired.model.apply(*repaired.weights, images)[0].argmax(-1)
  got = np.asarray(path.answer(path.args, KEY, images))
  assert got.shape == (64, 1) and got.dtype == np.int32
  # K, not K + 1.
  np.testing.assert_array_equal(got[:, 0], np.where(rejected, 4, labels))
  assert 0.2 < np.mean(rejected) < 0.6
  (kept,) = path.repairs
  jax.tree.map(np.testing.assert_array_equal, kept.weights, repaired.weights)
  assert path.details["repaired"] == repaired.details


def test_there_is_one_rate(defender):
  settings = StripFinePruningSettings(frr="0.1,0.2")
  with pytest.raises(UserError, match="frr must be one rate here .got 0.1,0.2"):
    strip_fine_pruning(defender, settings)
