"""Tests of the scores of repairs and of paths of repairs, by hand."""

import jax.numpy as jnp
import numpy as np
import pytest
from toy_networks import (
  CLASSES,
  MODEL,
  evaluator,
  original,
  weights,
)

from bdjax import metrics
from bdjax.defenses.base import Repair, RepairPath, TrainedNetwork
from bdjax.evaluation import ScoredResults, TriggeredSet, score_results

proportion = metrics.proportion


def test_nothing_is_measured_of_nothing():
  assert score_results((), evaluator(), original()) == ScoredResults({}, {}, [])


def test_a_repair_by_hand():
  # The backdoor is gone, and with it the accuracy on the two images of 3.
  repair = Repair("tuned", MODEL, weights(blind=3), {"epochs": 2})
  scored = score_results((repair,), evaluator(), original())
  assert scored.measured == {
    "clean_accuracy_tuned": proportion(0.8, 10),
    "attack_success_rate_tuned": proportion(0.0, 7),
    "robust_accuracy_tuned": proportion(5 / 7, 7),
    # ASR falls by 1, accuracy by 0.2: (1 - 0.2 + 1) / 2.
    "defense_effectiveness_rate_tuned": pytest.approx(0.9),
  }
  assert scored.details["networks"] == [
    {
      "name": "tuned",
      "clean_accuracy": pytest.approx(0.8),
      "attack_success_rate": 0.0,
      "robust_accuracy": pytest.approx(5 / 7),
      "epochs": 2,
    }
  ]
  ((kind, plot),) = scored.plots
  assert kind == "rounds" and plot["names"] == ["tuned"]
  assert plot["curves"]["clean accuracy"] == [pytest.approx(0.8)]
  assert plot["curves"]["attack success rate"] == [0.0]


def test_the_original_network_is_scored_once_and_steps_only_drawn():
  results = (
    Repair("before", MODEL, weights(blind=0), saved=False),
    Repair("round 1", MODEL, weights(2, blind=3), step=True),
    TrainedNetwork("", MODEL, weights()),
  )
  scored = score_results(results, evaluator(), original())
  # "before" is what the evaluator measured of the network that it was given.
  assert scored.measured == {
    "clean_accuracy_before": proportion(1.0, 10),
    "attack_success_rate_before": proportion(1.0, 7),
    "robust_accuracy_before": proportion(0.0, 7),
    "clean_accuracy": proportion(1.0, 10),
    "attack_success_rate": proportion(0.0, 7),
    "robust_accuracy": proportion(1.0, 7),
    "defense_effectiveness_rate": 1.0,
  }
  rows = scored.details["networks"]
  assert [row["name"] for row in rows] == ["before", "round 1", ""]
  curves = scored.plots[0][1]["curves"]
  assert curves["clean accuracy"] == pytest.approx([1.0, 0.8, 1.0])
  # Of seven triggered images two are of label 3 and so are taken for 0.
  assert curves["attack success rate"] == pytest.approx([1, 5 / 7, 0])


def test_a_repair_of_a_clean_network():
  repair = Repair("tuned", MODEL, weights(blind=3))
  scored = score_results((repair,), evaluator(None), original(-1))
  assert scored.measured == {"clean_accuracy_tuned": proportion(0.8, 10)}
  assert set(scored.plots[0][1]["curves"]) == {"clean accuracy"}


def _answer(args, key, images):
  """Answer with three networks of a path: the last refuses bright images.

  The first is the network with its backdoor, the second has lost it and takes
  3 for 0, and the third refuses what is white, and label 1 with it.
  """
  del key
  second = jnp.round(images[:, 0, 1, 0] * 25.5).astype(jnp.int32)
  white = images[:, 0, 0, 0] > 0.9
  first = jnp.where(white, 2, second)
  blind = jnp.where(second == 3, 0, second)
  refuses = jnp.where(white | (second == 1), args, second)
  return jnp.stack([first, blind, refuses], 1)


PATH = RepairPath(
  "pruning",
  _answer,
  CLASSES,
  {"": 0, "chosen": 1},
  "channels pruned",
  curves={"defender accuracy": np.array([1.0, 0.9, 0.5])},
  details={"layer": "conv_2"},
)


def test_a_path_by_hand():
  scored = score_results((PATH,), evaluator(), original())
  assert scored.measured == {
    "clean_accuracy": proportion(1.0, 10),
    "attack_success_rate": proportion(1.0, 7),
    "robust_accuracy": proportion(0.0, 7),
    "defense_effectiveness_rate": 0.5,
    "clean_accuracy_chosen": proportion(0.8, 10),
    "attack_success_rate_chosen": proportion(0.0, 7),
    "robust_accuracy_chosen": proportion(5 / 7, 7),
    "defense_effectiveness_rate_chosen": pytest.approx(0.9),
  }
  assert scored.details == {
    "layer": "conv_2",
    "clean accuracy": pytest.approx([1.0, 0.8, 0.8]),
    "attack success rate": [1.0, 0.0, 0.0],
  }
  ((kind, plot),) = scored.plots
  assert kind == "path"
  assert (plot["name"], plot["axis"]) == ("pruning", "channels pruned")
  assert plot["points"] == {"": 0, "chosen": 1}
  assert list(plot["curves"]) == [
    "clean accuracy", "attack success rate", "defender accuracy",
  ]  # fmt: skip


def test_a_path_that_refuses_by_hand():
  path = PATH._replace(points={"kept": 2}, refuses=True, batch_size=4)
  scored = score_results((path,), evaluator(), original())
  assert scored.measured == {
    # Of ten clean images the two of label 1 are refused, and not answered.
    "clean_accuracy_kept": proportion(0.8, 10),
    "frr_kept": proportion(0.2, 10),
    # All seven triggered ones are refused, which for them is right.
    "attack_success_rate_kept": proportion(0.0, 7),
    "robust_accuracy_kept": proportion(0.0, 7),
    "far_kept": proportion(0.0, 7),
    "triggered_accuracy_kept": proportion(1.0, 7),
    "mixed_accuracy_kept": proportion(15 / 17, 10),
  }
  # A network that refuses nothing is right about five triggered images.
  chosen = path._replace(points={"kept": 1})
  measured = score_results((chosen,), evaluator(), original()).measured
  assert measured["triggered_accuracy_kept"] == proportion(5 / 7, 7)
  assert measured["mixed_accuracy_kept"] == proportion(13 / 17, 10)
  # No effectiveness: a network that refuses has other rates.
  path = path._replace(points={"kept": 0})
  measured = score_results((path,), evaluator(), original()).measured
  assert measured["far_kept"] == proportion(1.0, 7)
  assert measured["triggered_accuracy_kept"] == proportion(0.0, 7)
  assert measured["mixed_accuracy_kept"] == proportion(10 / 17, 10)


def test_a_path_of_one_network_is_not_drawn():
  def answer(args, key, images):
    return _answer(args, key, images)[:, 1]

  path = PATH._replace(answer=answer, points={"": 0})
  scored = score_results((path,), evaluator(), original())
  assert scored.plots == []
  assert scored.measured["clean_accuracy"] == proportion(0.8, 10)
  assert scored.details["attack success rate"] == [0.0]


def test_a_path_without_an_attack():
  path = PATH._replace(points={"kept": 2}, refuses=True)
  scored = score_results((path,), evaluator(None), original(-1))
  assert scored.measured == {
    "clean_accuracy_kept": proportion(0.8, 10),
    "frr_kept": proportion(0.2, 10),
  }


def test_a_path_where_the_true_labels_are_not_known():
  given = TriggeredSet(
    np.full((4, 1, 2, 1), 255, np.uint8),
    np.array([2, 2, 1, 1], np.int32),
    np.array([0, 1, 0, 1], np.int32),
    ("square", "sticker"),
  )
  path = PATH._replace(points={"kept": 0}, refuses=True)
  held_out = evaluator(None, triggered=given)
  measured = score_results((path,), held_out, original()).measured
  assert measured["attack_success_rate_kept"] == proportion(0.5, 4)
  assert measured["far_square_kept"] == proportion(1.0, 2)
  assert not {"robust_accuracy_kept", "mixed_accuracy_kept"} & set(measured)
