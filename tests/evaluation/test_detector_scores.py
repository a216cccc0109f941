"""Tests of the scores of detectors of inputs, images and networks, by hand."""

import jax.numpy as jnp
import numpy as np
import pytest
from toy_networks import evaluator, original

from bdjax import metrics
from bdjax.attacks.patches import Trigger
from bdjax.batch import CLEAN, COVER, POISONED
from bdjax.defenses.base import InputDetector, SampleScores, Verdict
from bdjax.evaluation import score_results

proportion = metrics.proportion


def _score(args, key, images):
  """Score an image by both pixels: clean ones 0 to 6, triggered 9 to 12."""
  del key
  grays = jnp.round(images[:, 0, :, 0] * 25.5).clip(0, 9)
  return args * grays.sum(1)


DETECTOR = InputDetector(
  _score,
  jnp.float32(1),
  {0.05: 5.0, 0.5: 2.5},
  np.array([0.0, 1.0, 3.0]),
  "brightness",
  4,
  {"overlays": 3},
)


def test_a_detector_by_hand():
  # Clean images score 0, 2, 4 and 6, of which there are 3, 2, 3 and 2;
  # triggered ones (of 0, 1 and 3) 9, 10 and 12: 3, 2 and 2.
  scored = score_results((DETECTOR,), evaluator(), original())
  measured = scored.measured
  assert measured["frr_at_0.05"] == proportion(0.2, 10)
  assert measured["frr_at_0.5"] == proportion(0.5, 10)
  for rate in ("0.05", "0.5"):
    assert measured[f"far_at_{rate}"] == proportion(0.0, 7)
    assert measured[f"attack_success_rate_at_{rate}"] == proportion(0.0, 7)
  assert measured["auroc"].mean == 1.0
  assert measured["score_mean_clean"] == pytest.approx(2.8)
  assert measured["score_mean_triggered"] == pytest.approx(71 / 7)
  assert measured["score_mean_calibration"] == pytest.approx(4 / 3)
  clean = np.repeat([0, 2, 4, 6], [3, 2, 3, 2])
  assert measured["score_sd_clean"] == pytest.approx(clean.std(ddof=1))
  for name in ("plain_ms_an_image", "guarded_ms_an_image"):
    assert 0 < measured[name] < 1000
  assert scored.details == {
    "images_calibration": 3,
    "images_clean": 10,
    "images_triggered": 7,
    "overlays": 3,
    "thresholds": {"0.05": 5.0, "0.5": 2.5},
  }
  ((kind, plot),) = scored.plots
  assert kind == "scores" and plot["label"] == "brightness"
  assert set(plot["samples"]) == {"calibration", "clean", "triggered"}
  np.testing.assert_array_equal(plot["samples"]["clean"], clean)


def test_what_passes_a_detector_is_not_all_of_it_a_success():
  # A threshold of 9.5 lets the three of label 0 pass.
  detector = DETECTOR._replace(thresholds={0.0: 9.5})
  measured = score_results((detector,), evaluator(), original()).measured
  assert measured["far_at_0"] == proportion(3 / 7, 7)
  assert measured["attack_success_rate_at_0"] == proportion(3 / 7, 7)
  # Without the backdoor they pass and do no harm.
  measured = score_results((detector,), evaluator(), original(-1)).measured
  assert measured["far_at_0"] == proportion(3 / 7, 7)
  assert measured["attack_success_rate_at_0"] == proportion(0.0, 7)


def test_a_threshold_itself_is_accepted():
  detector = DETECTOR._replace(thresholds={0.1: 6.0, 0.2: 4.0})
  measured = score_results((detector,), evaluator(), original()).measured
  assert measured["frr_at_0.1"] == proportion(0.0, 10)
  assert measured["frr_at_0.2"] == proportion(0.2, 10)


def test_the_area_under_the_curve_counts_the_suspicious_as_higher():
  inverted = DETECTOR._replace(args=jnp.float32(-1))
  measured = score_results((inverted,), evaluator(), original()).measured
  assert measured["auroc"].mean == 0.0


def test_a_detector_of_a_clean_network():
  single = DETECTOR._replace(calibration=np.array([1.0]))
  scored = score_results((single,), evaluator(None), original(-1))
  assert "auroc" not in scored.measured
  assert not any(name.startswith("far") for name in scored.measured)
  assert scored.measured["score_sd_calibration"] == 0.0
  assert set(scored.plots[0][1]["samples"]) == {"calibration", "clean"}


ROLES = np.array([CLEAN, POISONED, COVER, POISONED, CLEAN, CLEAN], np.int8)
SAMPLES = SampleScores(
  np.array([0.1, 0.9, 0.8, 0.7, 0.2, 0.3]),
  np.array([False, True, True, False, False, False]),
  {"components": 2},
)


def test_scores_of_training_images_by_hand():
  scored = score_results((SAMPLES,), evaluator(), original(roles=ROLES))
  over = "training images"
  measured = scored.measured
  assert measured["flagged_share"] == proportion(1 / 3, 6, over)
  # A cover is not poisoned: of eight pairs one is in the wrong order.
  assert measured["auroc"].mean == pytest.approx(7 / 8)
  assert measured["auroc"].over == over
  assert measured["tpr"] == proportion(0.5, 2, over)
  assert measured["fpr"] == proportion(0.25, 4, over)
  assert scored.details == {"components": 2}


@pytest.mark.parametrize("roles", [None, np.zeros(6, np.int8)])
def test_without_a_poisoned_set_only_the_flagged_share_is_known(roles):
  scored = score_results((SAMPLES,), evaluator(), original(roles=roles))
  assert set(scored.measured) == {"flagged_share"}


VERDICT = Verdict(
  statistic=4.5,
  index=np.array([0.5, 2.5, 4.5, np.nan]),
  suspects=[2, 1],
  threshold=2.0,
)


def test_a_verdict_by_hand():
  scored = score_results((VERDICT,), evaluator(), original())
  # The target 2 is found; of the innocent 0, 1 and 3 one is accused.
  assert scored.measured == {
    "flagged": [2, 1],
    "anomaly_index": [0.5, 2.5, 4.5, None],
    "largest_index": 4.5,
    "detection_rate": proportion(1.0, 1, "labels"),
    "false_alarm_rate": proportion(1 / 3, 3, "labels"),
  }
  assert scored.plots == [] and scored.details == {}


def test_a_verdict_with_all_that_it_may_have():
  triggers = Trigger(jnp.zeros((4, 1, 2, 1)), jnp.zeros((4, 1, 2, 1)))
  verdict = VERDICT._replace(
    p_values=np.array([0.9, 0.2, 0.01, np.nan]),
    sizes=np.array([20.0, 10.0, 3.0, np.inf]),
    triggers=triggers,
    details={"steps": 100},
  )
  scored = score_results((verdict,), evaluator(), original())
  assert scored.measured["p_values"] == [0.9, 0.2, 0.01, None]
  assert scored.measured["mask_norm"] == [20.0, 10.0, 3.0, None]
  assert scored.details == {"steps": 100}
  assert scored.plots == [("verdict", {"verdict": verdict})]


def test_a_verdict_on_a_clean_network_has_false_alarms_alone():
  scored = score_results((VERDICT,), evaluator(None), original(-1))
  assert "detection_rate" not in scored.measured
  alarms = scored.measured["false_alarm_rate"]
  assert alarms == proportion(0.5, 4, "labels")


def test_several_kinds_of_result_are_scored_together():
  results = (VERDICT, DETECTOR, SAMPLES)
  scored = score_results(results, evaluator(), original(roles=ROLES))
  assert {"flagged", "frr_at_0.5", "tpr"} <= set(scored.measured)
  assert {"overlays", "components"} <= set(scored.details)
  assert [kind for kind, _ in scored.plots] == ["scores"]
