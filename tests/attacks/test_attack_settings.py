"""Tests of target labels, places and their defaults, by hand."""

import numpy as np
import pytest

from bdjax.attacks import BadNetsSettings, CbanSettings, RandomBackdoorSettings
from bdjax.attacks.settings import (
  AttackSettings,
  PatchSettings,
  check_regions,
  parse_locations,
  parse_targets,
  targets_and_sources,
)
from bdjax.errors import UserError


@pytest.mark.parametrize(
  "text, expected", [("all", (0, 1, 2, 3)), ("2", (2,)), ("3,0", (3, 0))]
)
def test_target_labels(text, expected):
  assert parse_targets(text, 4) == expected


def test_all_to_all_leads_each_label_to_the_next():
  settings = AttackSettings(all_to_all=True).filled("digits")
  assert settings.has_several_targets and settings.poison_rate == 0.3
  targets, sources = targets_and_sources(settings, 3)
  assert targets == (0, 1, 2)
  # Row t has the labels that go to t.
  assert sources.tolist() == [
    [False, False, True],
    [True, False, False],
    [False, True, False],
  ]
  given = AttackSettings(all_to_all=True, target_labels="0,1,2")
  assert targets_and_sources(given.filled("digits"), 3)[0] == (0, 1, 2)


@pytest.mark.parametrize(
  "settings, dataset, expected",
  [
    (PatchSettings(), "digits", ("0", 0.1, "anywhere", 3, 5)),
    (PatchSettings(), "cifar10", ("0", 0.1, "anywhere", 5, 5)),
    (PatchSettings(target_labels="1,2"), "mnist", ("1,2", 0.3, "grid", 5, 5)),
    (PatchSettings(all_to_all=True), "mnist", ("all", 0.3, "anywhere", 5, 5)),
    (BadNetsSettings(), "cifar10", ("0", 0.1, "corner", 3, 1)),
    (BadNetsSettings(all_to_all=True), "mnist", ("all", 0.3, "corner", 3, 1)),
    (BadNetsSettings(trigger="x.png"), "mnist", ("0", 0.1, "corner", None, 1)),
    (RandomBackdoorSettings(), "mnist", ("0", 0.15, "anywhere", 5, 5)),
    (RandomBackdoorSettings(), "cifar10", ("0", 0.2, "anywhere", 5, 5)),
    (CbanSettings(), "cifar10", ("all", 0.3, "anywhere", 5, 5)),
    (CbanSettings(target_labels="1"), "mnist", ("1", 0.1, "anywhere", 5, 5)),
  ],
)
def test_defaults(settings, dataset, expected):
  filled = settings.filled(dataset)
  assert (
    filled.target_labels,
    filled.poison_rate,
    filled.locations,
    filled.trigger_size,
    filled.eval_draws,
  ) == expected


def _parse(text, num=2, size=(3, 2)):
  return parse_locations(text, num, size, (8, 10)).tolist()


@pytest.mark.parametrize(
  "text, expected",
  [
    ("anywhere", [[[0, 0, 8, 10]]] * 2),
    ("corner", [[[5, 8, 8, 10]]] * 2),
    ("grid", [[[0, 0, 8, 5]], [[0, 5, 8, 10]]]),
    ("1:4", [[[1, 4, 4, 6]]] * 2),
    ("0:0,5:8", [[[0, 0, 3, 2], [5, 8, 8, 10]]] * 2),
    ("0:0;5:8", [[[0, 0, 3, 2]], [[5, 8, 8, 10]]]),
    (
      "0:0,1:1;2:2,3:3",
      [[[0, 0, 3, 2], [1, 1, 4, 3]], [[2, 2, 5, 4], [3, 3, 6, 5]]],
    ),
  ],
)
def test_locations(text, expected):
  assert _parse(text) == expected


@pytest.mark.parametrize(
  "text, words",
  [
    ("top", "must be anywhere, grid, corner, or TOP:LEFT"),
    ("1", "TOP:LEFT with commas"),
    ("1:2:3", "TOP:LEFT with commas"),
    ("", "TOP:LEFT with commas"),
    (f"{10**9}:0", "TOP:LEFT with commas"),
    ("0:0;1:1;2:2", "one set of corners for all 2 target labels"),
    ("0:0,1:1;2:2", "of equal length for each"),
    ("6:0", "leave room for a 3x2 trigger in images of 8x10 .got 6:0"),
    ("0:-1", "leave room"),
  ],
)
def test_locations_that_are_none(text, words):
  with pytest.raises(UserError, match=words) as error:
    _parse(text)
  assert "\n" not in str(error.value)


def test_regions_must_tell_the_targets_apart():
  same = np.array([[[0, 0, 3, 3]], [[0, 0, 3, 3]]])
  with pytest.raises(UserError, match="several targets of badnets"):
    check_regions(same, "badnets")
  check_regions(same[:1], "badnets")
  check_regions(np.array([[[0, 0, 3, 3]], [[0, 3, 3, 6]]]), "badnets")
  shared = np.array(
    [[[0, 0, 3, 3], [5, 5, 8, 8]], [[4, 0, 7, 3], [0, 0, 3, 3]]]
  )
  with pytest.raises(UserError, match="locations must differ"):
    check_regions(shared, "ban")
