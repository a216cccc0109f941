import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bdjax.attacks.patches import Trigger
from bdjax.checkpoints import Checkpoints
from bdjax.defenses.base import check_finite
from bdjax.defenses.fine_pruning import by_value
from bdjax.defenses.fine_pruning.by_activation import compile_by_activation
from bdjax.defenses.fine_pruning.method import METHOD, fine_pruning
from bdjax.defenses.fine_pruning.rounds import (
  SuspectedTrigger,
  compile_rounds,
  value_mask,
)
from bdjax.defenses.fine_pruning.settings import FinePruningSettings
from bdjax.defenses.tuning import compile_tuning
from bdjax.errors import UserError
from bdjax.models import masking

KEY = jax.random.key(17)


def _data(defender):
  return defender.weights, defender.images, defender.labels


def _accuracy(model, weights, images, labels):
  images = images.astype(jnp.float32) / 255
  logits, _ = model.apply(*weights, images)
  return float((logits.argmax(-1) == labels).mean())


def _equal(left, right):
  jax.tree.map(np.testing.assert_array_equal, left, right)


def test_value_mask_by_hand():
  params = {
    "conv": {
      "kernel": jnp.array([-4.0, -3.0, 0.0, 1.0, 4.0]).reshape(1, 1, 1, 5),
      "bias": jnp.array([-9.0]),
    },
    "linear": {"kernel": jnp.array([[-9.0, 9.0]])},
  }
  kept = jax.jit(value_mask)(params, 0.125)
  # -4 + 8 / 8 = -3, and what equals the threshold goes too. Signed: 0 stays.
  assert kept["conv"]["kernel"].ravel().tolist() == [0, 0, 1, 1, 1]
  assert kept["conv"]["bias"].all() and kept["linear"]["kernel"].all()
  assert masking.pruned_share(kept) == pytest.approx(0.4)
  zeroed = masking.zero(params, kept)
  assert zeroed["conv"]["kernel"].ravel().tolist() == [0, 0, 0, 1, 4]
  assert zeroed["linear"]["kernel"].tolist() == [[-9, 9]]
  for percent, want in [(0.0, 0.2), (0.5, 0.6), (1.0, 1.0)]:
    kept = value_mask(params, percent)
    assert masking.pruned_share(kept) == pytest.approx(want)


def test_value_masks_nest_and_vmap_equals_a_loop():
  params = {"kernel": jax.random.normal(KEY, (3, 3, 4, 8))}
  percents = jnp.linspace(0.0, 0.9, 7)
  got = jax.vmap(value_mask, (None, 0))(params, percents)["kernel"]
  for i, percent in enumerate(percents):
    want = value_mask(params, percent)["kernel"]
    np.testing.assert_array_equal(got[i], want)
  assert not (got[1:] & ~got[:-1]).any()  # none comes back
  assert got[0].sum() == 287 and got[-1].sum() < 29


def test_by_activation_prunes_to_the_floor_and_tunes(defender):
  model, mesh = defender.model, defender.mesh
  masked = masking.masked(model)
  tune = compile_tuning(masked, 16, mesh, epochs=10, learning_rate=0.05)
  repair = compile_by_activation(model, "conv_2", 32, mesh, tune, drop=0.05)
  result = repair(KEY, *_data(defender))
  accuracies, data = result.curve.accuracies, _data(defender)[1:]
  assert accuracies[0] == _accuracy(model, *_data(defender)) > 0.95
  # The first so far below; the mask is that one.
  dropped = accuracies[0] - accuracies >= 0.05
  assert 0 < result.channels == dropped.argmax() < 8
  mask = np.ones(8)
  mask[result.curve.order[: result.channels]] = 0
  for weights in (result.pruned, result.tuned):
    np.testing.assert_array_equal(weights.params["masks"]["conv_2"], mask)
  before = _accuracy(masked, result.pruned, *data)
  assert before == pytest.approx(accuracies[result.channels])
  assert _accuracy(masked, result.tuned, *data) > before
  assert result.metrics["loss"].shape == (40,)


@pytest.fixture(scope="module")
def compiled(defender):
  """Makes rounds with one compiled tuning."""
  model, mesh = defender.model, defender.mesh
  tune = compile_tuning(
    model, 16, mesh, epochs=1, learning_rate=1e-3, weight_decay=0.1
  )
  return functools.partial(compile_rounds, model, 32, mesh, tune)


@pytest.fixture(scope="module")
def three_rounds(defender, compiled):
  rounds = compiled(step=0.25, drop=1.0)
  return rounds, list(rounds(KEY, *_data(defender)))


def test_rounds_end_below_the_floor(defender, compiled):
  model, data = defender.model, _data(defender)
  results = list(compiled(step=0.1, drop=0.02)(KEY, *data))
  assert [r.number for r in results] == list(range(1, len(results) + 1))
  assert 1 < len(results) and not results[-1].accepted
  floor = _accuracy(model, *data) - 0.02
  for r in results:
    assert r.percent == pytest.approx(0.1 * r.number)
    assert r.accuracy == pytest.approx(_accuracy(model, r.weights, *data[1:]))
    assert r.accepted == (r.accuracy >= floor) == (r is not results[-1])
    assert r.last == (r is results[-1]) and r.proxy is None


def test_pruned_weights_are_exactly_zero_after_every_round(
  defender, three_rounds
):
  _, results = three_rounds
  params = defender.weights.params
  assert [r.percent for r in results] == [0.25, 0.5, 0.75]
  assert results[-1].accepted
  for r in results:
    _equal(r.mask, value_mask(params, r.percent))
    zeros, count = 0, 0
    for layer in ("conv_1", "conv_2"):
      kernel = np.asarray(r.weights.params[layer]["kernel"])
      kept = np.asarray(r.mask[layer]["kernel"])
      assert (kernel[~kept] == 0).all() and (kernel[kept] != 0).all()
      zeros, count = zeros + (kernel == 0).sum(), count + kernel.size
    assert r.pruned == pytest.approx(zeros / count)
  assert results[0].pruned < results[1].pruned < results[2].pruned
  moved = results[-1].weights.params["hidden"]["kernel"]
  assert (moved != params["hidden"]["kernel"]).mean() > 0.5


def test_resuming_after_a_round_equals_an_unbroken_run(defender, three_rounds):
  rounds, results = three_rounds
  data = _data(defender)
  _equal(list(rounds(KEY, *data, resume_from=results[0])), results[1:])
  assert list(rounds(KEY, *data, resume_from=results[-1])) == []


def test_the_proxy_is_measured_on_the_defenders_images_of_other_classes(
  defender, compiled
):
  # The upper right quadrant is white: everything looks like label 1.
  white = jnp.zeros((8, 8, 1)).at[:4, 4:].set(1.0)
  suspect = SuspectedTrigger(Trigger(white, white), 1)
  rounds = compiled(step=0.25, drop=1.0, proxy_goal=0.0)
  results = list(rounds(KEY, *_data(defender), suspect))
  others = defender.labels != 1
  stamped = defender.images.at[:, :4, 4:].set(255)[others]
  for r in results:
    expected = _accuracy(defender.model, r.weights, stamped, jnp.int32(1))
    assert r.proxy == pytest.approx(expected)
  assert results[0].proxy > 0.9
  # A goal that the first round reaches ends the loop there.
  rounds = compiled(step=0.25, drop=1.0, proxy_goal=1.0)
  (only,) = rounds(KEY, *_data(defender), suspect)
  assert only.last and only.accepted


def test_the_method_by_activation(defender):
  settings = FinePruningSettings(epochs=2, drop=0.05, augment="none")
  results = fine_pruning(defender, settings)
  assert [r.name for r in results] == ["before", "pruned", "repaired"]
  assert [r.saved for r in results] == [False, False, True]
  before, pruned, repaired = results
  assert before.model is pruned.model is repaired.model
  data = _data(defender)[1:]
  accuracy = _accuracy(defender.model, *_data(defender))
  assert _accuracy(before.model, before.weights, *data) == accuracy
  details = pruned.details
  assert details["layer"] == "conv_2" and details == repaired.details
  masks = [r.weights.params["masks"]["conv_2"] for r in results]
  assert masks[0].all()
  assert int((masks[1] == 0).sum()) == details["channels"] > 0
  np.testing.assert_array_equal(masks[1], masks[2])
  got = _accuracy(pruned.model, pruned.weights, *data)
  assert got == pytest.approx(details["defender_accuracy"])
  assert got <= accuracy - 0.05
  assert METHOD.variant(settings) == ""


BY_VALUE = FinePruningSettings(by="value", step=0.25, drop=0.9)


class Stopped(Exception):
  """Stands for a signal."""


def test_rounds_by_value_resume_where_they_were_stopped(
  defender, tmp_path, monkeypatch, caplog
):
  expected = fine_pruning(defender, BY_VALUE)
  names = [r.name for r in expected]
  assert names == ["before", "25%", "50%", "75%", "repaired"]
  assert [r.saved for r in expected] == [False] * 4 + [True]
  assert [r.step for r in expected] == [False, True, True, True, False]
  assert METHOD.variant(BY_VALUE) == "-value"
  calls = []

  def stop_in_the_third_round(*args):
    calls.append(args)
    if len(calls) == 3:
      raise Stopped
    check_finite(*args)

  with monkeypatch.context() as patch:
    patch.setattr(by_value, "check_finite", stop_in_the_third_round)
    with pytest.raises(Stopped):
      fine_pruning(defender, BY_VALUE, tmp_path)
  path = tmp_path / "checkpoints" / "rounds"
  with Checkpoints(path, read_only=True) as checkpoints:
    assert checkpoints.latest_step() == 2
  for first in ("round 3", None):  # the rest, and then nothing
    caplog.clear()
    with caplog.at_level("INFO", by_value.logger.name):
      results = fine_pruning(defender, BY_VALUE, tmp_path)
    lines = [line for line in caplog.messages if line.startswith("round")]
    assert [line[:7] for line in lines] == ([first] if first else [])
    for result, other in zip(results, expected, strict=True):
      assert result.name == other.name and result.details == other.details
      _equal(result.weights, other.weights)


def test_the_last_accepted_network_is_the_repaired_one(defender):
  settings = FinePruningSettings(by="value", step=0.1, drop=0.02)
  *rounds, repaired = fine_pruning(defender, settings)
  accepted = [r for r in rounds if r.details.get("accepted", True)]
  assert len(accepted) == len(rounds) - 1
  _equal(repaired.weights, accepted[-1].weights)


def _triggers(path, flagged=(1,), shape=(8, 8)):
  white = np.zeros((4, *shape, 1), np.float32)
  white[:, :4, 4:] = 1
  np.savez(path, masks=white, patterns=white, flagged=np.array(flagged, int))
  return str(path)


def test_the_trigger_of_neural_cleanse_is_the_proxy(defender, tmp_path):
  path = _triggers(tmp_path / "triggers.npz", (1, 3))
  suspect = by_value.read_suspect(path, defender)
  assert suspect.label == 1 and suspect.trigger.mask.shape == (8, 8, 1)
  settings = FinePruningSettings(
    by="value", step=0.5, drop=0.9, proxy_triggers=path
  )
  _, network, _ = fine_pruning(defender, settings)
  assert network.details["proxy"] > 0.5


def test_triggers_that_do_not_fit_are_one_line(defender, tmp_path):
  text, other = tmp_path / "text.npz", tmp_path / "other.npz"
  text.write_text("no archive")
  np.savez(other, images=np.zeros(3))
  missing = str(tmp_path / "missing.npz")
  for path, words in (
    (missing, "must be the triggers.npz of neural_cleanse"),
    (str(text), "must be the triggers.npz of neural_cleanse"),
    (str(other), "must be the triggers.npz of neural_cleanse"),
    (_triggers(tmp_path / "none.npz", ()), "must flag a class"),
    (_triggers(tmp_path / "size.npz", (1,), (9, 8)), "classes and images"),
    (_triggers(tmp_path / "label.npz", (4,)), "classes and images"),
  ):
    settings = FinePruningSettings(by="value", proxy_triggers=path)
    with pytest.raises(UserError, match=words) as error:
      fine_pruning(defender, settings)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
  "settings, words",
  [
    ({"by": "size"}, "by must be one of activation, value"),
    ({"drop": 0.0}, "drop must be more than 0 and less than 1 .got 0.0"),
    ({"proxy_triggers": "a.npz"}, "proxy_triggers must be left out where by"),
    ({"epochs": 0}, "epochs must be at least 1"),
    ({"layer": "conv_9"}, "layer must be one of conv_1, conv_2"),
    ({"learning_rate": 1e30, "epochs": 2}, "learning_rate must be smaller"),
    (
      {"by": "value", "learning_rate": 1e30, "tune_batch_size": 16},
      "learning_rate must be smaller",
    ),
  ],
)
def test_settings_that_do_not_fit_are_one_line(defender, settings, words):
  with pytest.raises(UserError, match=words) as error:
    fine_pruning(defender, FinePruningSettings(**settings))
  assert "\n" not in str(error.value)
