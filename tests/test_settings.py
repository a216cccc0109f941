"""Tests of bdjax.settings, on dataclasses made by hand."""

import dataclasses
import json
import math
from typing import Optional, Union

import numpy as np
import pytest

from bdjax import settings
from bdjax.errors import UserError
from bdjax.settings import setting


@dataclasses.dataclass(frozen=True)
class Example:
  epochs: int = setting(10, "Passes over the data.", low=1)
  poison_rate: float = setting(
    0.2, "Share poisoned.", low=0, high=1, sweep="poison_rates"
  )
  learning_rate: float = setting(0.1, "Peak learning rate.", above=0, below=2)
  trigger_size: int | None = setting(
    None,
    "Side of the trigger in pixels.",
    by_dataset={"digits": 3, "*": 5},
    low=1,
  )
  model: str | None = setting(
    None,
    "Network.",
    by_dataset={"digits": "cnn", "mnist": "cnn", "cifar10": "resnet18"},
    choices=("cnn", "resnet18"),
  )
  steps: tuple[float, ...] = setting((0.5, 1.0), "Steps.", low=0, free=True)
  amsgrad: bool = setting(False, "Whether the maximum is kept.", group="Extra")
  note: str | None = setting(None, "Note (default: none).", free=True)


FIELDS = {field.name: field for field in dataclasses.fields(Example)}


def test_metadata_has_every_key_of_every_field():
  keys = {
    *("help", "by_dataset", "low", "high", "above", "below", "choices"),
    *("sweep", "free", "group"),
  }
  assert {frozenset(f.metadata) for f in FIELDS.values()} == {frozenset(keys)}
  assert FIELDS["poison_rate"].metadata["sweep"] == "poison_rates"
  assert FIELDS["amsgrad"].metadata["group"] == "Extra"
  with pytest.raises(ValueError, match="by_dataset"):
    setting(3, "Side.", by_dataset={"*": 5})


@pytest.mark.parametrize(
  "name, text",
  [
    ("epochs", "Passes over the data (default: 10)."),
    (
      "trigger_size",
      "Side of the trigger in pixels (default: digits 3, else 5).",
    ),
    ("model", "Network (default: digits and mnist cnn, cifar10 resnet18)."),
    ("steps", "Steps (default: 0.5, 1.0)."),
    ("amsgrad", "Whether the maximum is kept (default: false)."),
    ("note", "Note (default: none)."),
  ],
)
def test_help_says_the_default(name, text):
  assert settings.help_text(FIELDS[name]) == text


def test_help_of_one_default_for_all_data_sets():
  field = dataclasses.make_dataclass(
    "S", [("x", int | None, setting(None, "Side.", by_dataset={"*": 5}))]
  ).__dataclass_fields__["x"]
  assert settings.help_text(field) == "Side (default: 5)."


def test_defaults_by_data_set_fill_only_what_is_none():
  filled = settings.fill_defaults(Example(), "digits")
  assert (filled.trigger_size, filled.model) == (3, "cnn")
  filled = settings.fill_defaults(Example(), "/some/images.npz")
  assert (filled.trigger_size, filled.model) == (5, None)
  filled = settings.fill_defaults(Example(trigger_size=2), "digits")
  assert filled.trigger_size == 2
  assert filled.note is None and filled.epochs == 10


@pytest.mark.parametrize(
  "values, message",
  [
    ({"epochs": 0}, "epochs must be at least 1 (got 0)"),
    (
      {"poison_rate": 1.5},
      "poison_rate must be at least 0 and at most 1 (got 1.5)",
    ),
    (
      {"learning_rate": 0.0},
      "learning_rate must be more than 0 and less than 2 (got 0.0)",
    ),
    (
      {"learning_rate": 2},
      "learning_rate must be more than 0 and less than 2 (got 2)",
    ),
    ({"poison_rate": math.nan}, "poison_rate must be finite (got nan)"),
    ({"learning_rate": math.inf}, "learning_rate must be finite (got inf)"),
    ({"epochs": 2.5}, "epochs must be a whole number (got 2.5)"),
    ({"epochs": True}, "epochs must be a whole number (got True)"),
    ({"epochs": None}, "epochs must be a whole number (got None)"),
    ({"trigger_size": "3"}, "trigger_size must be a whole number (got '3')"),
    ({"poison_rate": "x"}, "poison_rate must be a number (got 'x')"),
    ({"amsgrad": 1}, "amsgrad must be true or false (got 1)"),
    ({"note": 3}, "note must be text (got 3)"),
    ({"steps": (0.5, -1.0)}, "steps must be at least 0 (got -1.0)"),
    ({"steps": (0.5, "a")}, "steps must be a number (got 'a')"),
    (
      {"model": "resnet81"},
      "model must be one of cnn, resnet18 (got resnet81; did you mean "
      "resnet18?)",
    ),
    ({"model": "vit"}, "model must be one of cnn, resnet18 (got vit)"),
  ],
)
def test_bad_values_are_refused_in_one_line(values, message):
  for prefix in ("", "--"):
    with pytest.raises(UserError) as error:
      settings.check(Example(**values), prefix)
    assert str(error.value) == prefix + message


@pytest.mark.parametrize(
  "values",
  [
    {},
    {"epochs": 1},
    {"epochs": np.int32(7)},
    {"poison_rate": 0},
    {"poison_rate": 1.0},
    {"learning_rate": 1},
    {"model": "cnn"},
    {"steps": ()},
    {"trigger_size": 1},
  ],
)
def test_values_in_range_pass(values):
  settings.check(Example(**values))


def test_a_swept_value_is_checked_alone():
  settings.check_value(FIELDS["poison_rate"], 0.5)
  with pytest.raises(UserError, match="^--poison_rate must be"):
    settings.check_value(FIELDS["poison_rate"], 2.0, "--")


def test_identity_leaves_out_what_is_free_and_is_json():
  found = settings.identity(Example(epochs=3))
  assert set(found) == set(FIELDS) - {"steps", "note"}
  assert found["epochs"] == 3
  assert json.loads(json.dumps(found)) == found

  pair = dataclasses.make_dataclass(
    "Pair", [("x", tuple[float, ...], setting((1.0, 2.0), "X."))]
  )
  assert settings.identity(pair()) == {"x": [1.0, 2.0]}


@pytest.mark.parametrize(
  "annotation, kind",
  [
    (int, int),
    (bool, bool),
    (str, str),
    (float | None, float),
    (None | str, str),
    (Optional[int], int),  # noqa: UP045
    (Union[bool, None], bool),  # noqa: UP007
    (tuple[float, ...], tuple),
    (tuple[int, ...] | None, tuple),
    ("int", int),
    ("float | None", float),
    ("Optional[str]", str),
    ("tuple[float, ...] | None", tuple),
  ],
)
def test_field_type(annotation, kind):
  field = dataclasses.field(default=None)
  field.name, field.type = "x", annotation
  assert settings.field_type(field) is kind


def test_field_type_of_several_types_is_an_error():
  field = dataclasses.field(default=None)
  field.name, field.type = "x", int | str
  with pytest.raises(TypeError, match="x must have one type"):
    settings.field_type(field)
