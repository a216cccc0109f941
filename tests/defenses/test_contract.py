"""The contract of all defences, on one tiny network."""

import re
import sys
import typing

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bdjax import defenses, settings
from bdjax.defenses import DEFENSES
from bdjax.defenses.base import (
  InputDetector,
  Repair,
  RepairPath,
  Result,
  TrainedNetwork,
  Verdict,
)
from bdjax.errors import UserError

KEY = jax.random.key(23)
# Settings with which a method takes a second; the others have their defaults.
FAST = {
  "fine_pruning": {"epochs": 1},
  "fine_tuning": {"epochs": 1, "tune_batch_size": 16},
  "neural_cleanse": {
    "steps": 15,
    "updates": 4,
    "patience": 2,
    "asr_threshold": 0.5,
    "unlearn_epochs": 1,
  },
  "strip": {"overlays": 5},
  "strip_fine_pruning": {"epochs": 1, "overlays": 5},
}
# Of what a run measures, not what it computes.
CLOCKS = ("search_seconds",)

every_method = pytest.mark.parametrize("name", DEFENSES)


def _defend(name, defender, directory=None):
  method = DEFENSES[name]
  chosen = method.settings(**FAST.get(name, {}))
  return method.defend(defender, chosen, directory)


@pytest.fixture(scope="module")
def results(defender):
  """Runs each method once: name -> results."""
  cache = {}

  def run(name):
    if name not in cache:
      cache[name] = _defend(name, defender)
    return cache[name]

  return run


def _comparable(result):
  """Return a result's arrays and numbers, without functions and clocks."""
  fields = {
    name: value
    for name, value in result._asdict().items()
    if name not in ("model", "answer", "score", "repairs")
  }
  if isinstance(result, RepairPath):
    fields["repairs"] = [_comparable(repair) for repair in result.repairs]
  details = result.details.items()
  fields["details"] = {k: v for k, v in details if k not in CLOCKS}
  return fields


def _check_equal(left, right):
  left, right = ([_comparable(r) for r in results] for results in (left, right))
  assert jax.tree.structure(left) == jax.tree.structure(right)
  for one, other in zip(*map(jax.tree.leaves, (left, right)), strict=True):
    if isinstance(one, str):
      assert one == other
    else:
      np.testing.assert_array_equal(one, other)


@every_method
def test_a_method_says_what_it_is(name):
  method = DEFENSES[name]
  assert method.name == name
  assert re.search(r"\b(19|20)\d\d\b", method.citation)
  module = sys.modules[method.defend.__module__]
  assert "References:" in method.defend.__doc__ + module.__doc__
  assert "Raises:" in method.defend.__doc__
  # A user imports the function, or the module of several, from the package.
  assert name in defenses.__all__ and getattr(defenses, name)
  assert method.settings.__name__ in defenses.__all__


@every_method
def test_the_default_settings_are_in_range_and_documented(name):
  method = DEFENSES[name]
  defaults = method.settings()
  settings.check(defaults)
  hash(defaults)  # frozen
  for field in method.settings.__dataclass_fields__.values():
    assert re.match(r"[A-Z].*\.$", settings.help_text(field)), field.name
  assert method.standard(defaults) is True
  assert isinstance(method.variant(defaults), str)


@every_method
def test_results_are_of_the_kinds_that_the_evaluator_scores(
  name, defender, results
):
  kinds = typing.get_args(Result)
  images = defender.images[:3].astype(jnp.float32) / 255
  assert results(name)
  for result in results(name):
    assert isinstance(result, kinds)
    if isinstance(result, Repair | TrainedNetwork):
      logits, _ = result.model.apply(*result.weights, images)
      assert logits.shape == (3, 4) and np.isfinite(logits).all()
    elif isinstance(result, RepairPath):
      labels = jax.jit(result.answer)(result.args, KEY, images)
      assert labels.dtype == jnp.int32 and labels.shape[0] == 3
      assert 0 <= labels.min() and labels.max() < 4 + result.refuses
      assert all(0 <= p < labels.shape[1] for p in result.points.values())
      assert result.points
      for values in result.curves.values():
        assert values.shape == labels.shape[1:]
    elif isinstance(result, InputDetector):
      scores = jax.jit(result.score)(result.args, KEY, images)
      assert scores.shape == (3,) and scores.dtype == jnp.float32
      rates = sorted(result.thresholds)
      limits = [result.thresholds[rate] for rate in rates]
      assert limits == sorted(limits, reverse=True)  # rejects more and more
    elif isinstance(result, Verdict):
      assert result.index.shape == (4,)
      assert set(result.suspects) <= set(range(4))


@every_method
def test_the_same_key_gives_the_same_results(name, defender, results, tmp_path):
  # With a directory, where what is kept does not change them.
  _check_equal(_defend(name, defender, tmp_path), results(name))
  if any(tmp_path.iterdir()):  # and they are there again at once
    _check_equal(_defend(name, defender, tmp_path), results(name))


@pytest.mark.slow
@every_method
def test_another_key_is_heeded_where_a_method_draws(name, defender, results):
  other = defender._replace(key=jax.random.key(24))
  draws = name not in ("pruning", "goodnet")
  same = True
  try:
    _check_equal(_defend(name, other), results(name))
  except AssertionError:
    same = False
  assert same != draws


@every_method
def test_without_images_there_is_one_line(name, defender):
  none = defender._replace(
    images=defender.images[:0], labels=defender.labels[:0]
  )
  with pytest.raises(UserError, match="images?") as error:
    _defend(name, none)
  assert "\n" not in str(error.value)
