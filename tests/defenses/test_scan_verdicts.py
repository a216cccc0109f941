"""Verdicts of a scan, and its report."""

import json

import numpy as np
import pytest

from bdjax import metrics
from bdjax.defenses.neural_cleanse import anomaly
from bdjax.defenses.neural_cleanse.searches import ReverseEngineered
from bdjax.defenses.scan.report import scale_caveats, sentences, table
from bdjax.defenses.scan.verdicts import judge, verdict


def _row(index, p_value, hits=None, n=2):
  score = None if hits is None else metrics.proportion(hits / n, n)._asdict()
  return {"anomaly_index": index, "p_value": p_value, "held_out": score}


@pytest.mark.parametrize(
  ("row", "expected"),
  [
    (_row(None, None, 2), "inconclusive"),
    (_row(1.9, 0.06, 2), "clean"),
    (_row(3.0, 0.06, 2), "suspect"),  # not so rare among so many
    (_row(3.0, 0.04, 2), "backdoored"),
    (_row(1.9, 0.04, 2), "backdoored"),
    (_row(3.0, 0.04, 0), "suspect"),  # two images say little
    (_row(3.0, 0.04, 0, 50), "clean"),  # fifty say that it does not work
    (_row(3.0, 0.04), "suspect"),
  ],
)
def test_verdict(row, expected):
  assert verdict(row, 2.0) == expected


def _found(norms):
  norms = np.array(norms, np.float32)
  reached = np.isfinite(norms)
  return ReverseEngineered(
    None, None, norms, reached, None, np.full(len(norms), 7)
  )


def _judge(norms, left=(), sample=5, hits=1.0, n=2):
  frozen = ~np.isin(np.arange(len(norms)), left)
  held = {k: metrics.proportion(hits, n) for k in range(len(norms)) if n}
  reference = np.arange(len(norms)) < sample
  names = [f"c{k}" for k in range(len(norms))]
  return judge(_found(norms), frozen, reference, held, names, 2.0)


NORMS = [100, 110, 120, 130, 140, 5, 115, np.nan, 90]


def test_judge():
  got = _judge(NORMS, left=[8])
  assert [r["class"] for r in got.rows] == [5, 8, 0, 1, 6, 2, 3, 4]
  first, left, second = got.rows[:3]
  assert first["rank"] == 1
  assert first["ratio_to_next"] == pytest.approx(0.05)
  assert second["rank"] == 2 and left["rank"] is None
  assert got.labels("backdoored") == [5] and got.labels("inconclusive") == [8]
  # 120 and its MAD of 10.
  assert first["anomaly_index"] == pytest.approx(115 / 14.826)
  json.dumps(got.rows, allow_nan=False)


def _said(judged, num=9, held_out=2):
  return " ".join(sentences(judged, num, 5, held_out, 2.0))


def test_sentences():
  said = _said(_judge(NORMS))
  assert "Class c5 looks backdoored: a mask of 5 pixels" in said
  assert "median of 5 random classes is 120" in said
  assert "Only 2 images" in said and "no more than 34%" in said
  assert "1 of 9 classes were searched to the end, and no mask" in said
  assert "not searched" not in said
  assert "1 of 9 classes were not searched to the end" in _said(
    _judge(NORMS, left=[8])
  )
  said = _said(_judge([*NORMS[:5], 105]), num=6, held_out=50)
  assert said.startswith("No class looks backdoored. No mask is")
  assert "held out" not in said and "not searched" not in said
  said = _said(_judge([*NORMS[:5], 88]), num=6, held_out=50)
  assert "Suspect: c5 (p = " in said
  assert "Of 6 normal draws about 0.1 have an index above 2" in said
  said = _said(_judge(NORMS, n=0), held_out=0)
  assert "backdoored for certain. Suspect: c5 (p" in said
  assert "No image could be held out" in said


def test_too_few_to_compare_with_is_no_verdict():
  judged = _judge(NORMS, left=[0, 1, 2, 3])
  assert {r["verdict"] for r in judged.rows} == {"inconclusive"}
  assert _said(judged).startswith("No verdict: only 1 of the reference")


def test_a_sample_that_no_mask_reached_is_no_verdict():
  judged = _judge([np.nan] * 9)
  assert _said(judged).startswith("No verdict: only 0 of the reference")


def test_failed_searches_tell_nothing_of_chance():
  """Five of a sample of forty are compared with, so five widen the null."""
  norms = [*range(100, 150, 10), *([np.nan] * 35), *range(200, 260)]
  judged = _judge(norms, left=range(40, 100), sample=40)
  assert judged.sample == 5 and judged.failed == 35
  expected = np.quantile(anomaly.null_indices(65, 5), 0.95)
  assert judged.threshold == expected
  assert "median of 5 random" in _said(_judge([*norms[:-1], 1], sample=40), 100)


def test_scale_caveats():
  assert "is a guess" in scale_caveats({1.0: 0.5, 255.0: 0.5})[0]
  assert "(1 and 255)" in scale_caveats({1.0: 0.5, 255.0: 0.5})[0]
  assert "is only 30%" in scale_caveats({1.0: 0.3, 255.0: 0.1})[0]
  assert scale_caveats({1.0: 0.9, 255.0: 0.1}) == scale_caveats(None) == []


def test_table():
  lines = table(_judge(NORMS, left=[8]).rows)
  assert lines[0][:3] == ("c5", "5.0", "7.76")
  assert lines[0][5:] == ("2/2 (34-100%)", "backdoored")
  dash = "\N{EN DASH}"
  assert lines[1][2:] == (dash, dash, dash, "2/2 (34-100%)", "inconclusive")
  assert table(_judge(NORMS, n=0).rows)[0][5] == dash
