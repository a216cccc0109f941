import jax
import numpy as np
import pytest

from bdjax.defenses.fine_tuning import FineTuningSettings, fine_tuning
from bdjax.defenses.tuning import compile_tuning
from bdjax.errors import UserError


def test_the_whole_network_is_tuned_as_published(defender):
  before, repaired = fine_tuning(defender, FineTuningSettings(epochs=3))
  assert before.name == "before" and not before.saved
  jax.tree.map(np.testing.assert_array_equal, before.weights, defender.weights)
  tune = compile_tuning(
    defender.model,
    64,  # all images: they are fewer than a batch of 256
    defender.mesh,
    epochs=3,
    learning_rate=0.01,
    schedule="cosine",
    momentum=0.9,
    weight_decay=5e-4,
  )
  expected, _ = tune(
    defender.key, defender.weights, defender.images, defender.labels
  )
  jax.tree.map(np.testing.assert_array_equal, repaired.weights, expected)
  assert repaired.name == "repaired" and repaired.saved
  assert repaired.details == {"steps": 3, "augment": "none"}
  moved = jax.tree.map(
    lambda x, y: (x != y).mean() > 0.5, before.weights, repaired.weights
  )
  assert all(jax.tree.leaves(moved))


def test_tuning_that_diverges_is_said(defender):
  settings = FineTuningSettings(learning_rate=1e30, epochs=3)
  with pytest.raises(UserError, match="learning_rate must be smaller"):
    fine_tuning(defender, settings)
