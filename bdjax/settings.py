"""Settings of methods and runs: frozen dataclasses whose fields say it all.

A field made by `setting` carries its meaning, its range and its default for
each data set, so that flags, checks, help texts and sweeps are all derived from
one line:

  @dataclasses.dataclass(frozen=True)
  class Settings:
    trigger_size: int | None = setting(
      None, "Side of the trigger in pixels.",
      by_dataset={"digits": 3, "*": 5}, low=1, sweep="trigger_sizes",
    )
"""

import dataclasses
import difflib
import math
import numbers
import operator
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from bdjax.errors import UserError

T = TypeVar("T")

_ENDS = {
  "low": (operator.ge, "at least"),
  "above": (operator.gt, "more than"),
  "high": (operator.le, "at most"),
  "below": (operator.lt, "less than"),
}
_KINDS = {
  bool: ("true or false", bool),
  int: ("a whole number", numbers.Integral),
  float: ("a number", numbers.Real),
  str: ("text", str),
}


def setting(
  default: Any,
  help: str,  # noqa: A002, the word that argparse and absl use
  *,
  by_dataset: Mapping[str, Any] | None = None,
  low: float | None = None,
  high: float | None = None,
  above: float | None = None,
  below: float | None = None,
  choices: Sequence[Any] | None = None,
  sweep: str | None = None,
  free: bool = False,
  group: str | None = None,
) -> Any:
  """Declare a field of a settings dataclass.

  Args:
    default: its value unless one is given; None where `by_dataset` has it, or
      where the method finds a value of its own, which `help` then says.
    help: a sentence that begins with a noun and ends with a full stop; the
      default is added to it.
    by_dataset: data set -> default; `*` stands for all others.
    low: smallest value allowed.
    high: largest value allowed.
    above: every value must be more than this.
    below: every value must be less than this.
    choices: all values allowed.
    sweep: the plural flag that takes several values of this field.
    free: whether the outcome does not depend on it.
    group: the topic under which `--help` lists it.

  Returns:
    A `dataclasses.field` with all of these in its metadata.

  Raises:
    ValueError: both `default` and `by_dataset` are given.
  """
  if by_dataset is not None and default is not None:
    raise ValueError("default must be None where by_dataset is given")
  metadata = dict(
    help=help, by_dataset=by_dataset, choices=choices, sweep=sweep
  )
  metadata |= dict(low=low, high=high, above=above, below=below)
  metadata |= dict(free=free, group=group)
  return dataclasses.field(default=default, metadata=metadata)


def help_text(field: dataclasses.Field) -> str:
  """Return the help of a field with its default in words.

  Args:
    field: of `setting`.

  Returns:
    For instance `Side of the trigger in pixels (default: digits 3, else 5).`
  """
  text, by_dataset = field.metadata["help"], field.metadata["by_dataset"]
  default = _shown(field.default)
  if by_dataset is not None:
    default = _by_dataset_in_words(by_dataset)
  if not default:
    return text
  return f"{text.removesuffix('.')} (default: {default})."


def fill_defaults(settings: T, dataset: str) -> T:
  """Fill settings that are None with the defaults of a data set.

  Args:
    settings: a dataclass of `setting` fields.
    dataset: its name, or the path of a file, which counts as any other.

  Returns:
    A copy; what has no default for this data set stays None.
  """
  values = {}
  for field in dataclasses.fields(settings):
    by_dataset = field.metadata.get("by_dataset") or {}
    if getattr(settings, field.name) is None:
      values[field.name] = by_dataset.get(dataset, by_dataset.get("*"))
  return dataclasses.replace(settings, **values)


def check(settings: Any, prefix: str = "") -> None:
  """Check the type and the range of every setting.

  Args:
    settings: a dataclass of `setting` fields; None is allowed where it is the
      default or the annotation has it.
    prefix: put before the name in errors, `--` where they are flags.

  Raises:
    UserError: one has the wrong type, is out of range or not one of its
      choices.
  """
  for field in dataclasses.fields(settings):
    check_value(field, getattr(settings, field.name), prefix)


def check_value(field: dataclasses.Field, value: Any, prefix: str = "") -> None:
  """Check one value of a field, as one that a sweep gives it.

  Args and errors as for `check`.
  """
  name = f"{prefix}{field.name}"
  if value is None and (field.default is None or type(None) in _members(field)):
    return
  kind = field_type(field)
  if kind is tuple:
    kind = next(iter(typing.get_args(_hint(field))), None)
  for item in value if isinstance(value, tuple) else (value,):
    _check_kind(name, kind, item)
    if field.metadata.get("choices") is not None:
      _check_choice(name, field.metadata["choices"], item)
    _check_range(name, field.metadata, item)


def identity(settings: Any) -> dict[str, Any]:
  """Return all settings that the outcome depends on, ready for JSON.

  Args:
    settings: a dataclass of `setting` fields.

  Returns:
    Name -> value of every field that is not free; tuples as lists.
  """
  return {
    field.name: _as_json(getattr(settings, field.name))
    for field in dataclasses.fields(settings)
    if not field.metadata.get("free")
  }


def field_type(field: dataclasses.Field) -> type:
  """Return the type of a field's values, that of `X | None` being X.

  Args:
    field: annotated with a type of one of Python's own names, for instance
      `int`, `float | None` or `tuple[float, ...]`, or with its text, as
      `from __future__ import annotations` has it.

  Returns:
    `bool`, `int`, `float`, `str` or, for `tuple[X, ...]`, `tuple`.

  Raises:
    TypeError: the annotation is a union of several types.
  """
  hint = _hint(field)
  return typing.get_origin(hint) or hint


def _members(field):
  """Return the types of a field's annotation, those of a union one by one."""

  # A field does not know its class, so a text is resolved on a stand-in.
  def stand_in(): ...

  stand_in.__annotations__ = {"value": field.type}
  hint = typing.get_type_hints(stand_in, vars(typing))["value"]
  if typing.get_origin(hint) in (typing.Union, types.UnionType):
    return typing.get_args(hint)
  return (hint,)


def _hint(field):
  """Return the one type of a field's annotation that is not None."""
  hints = [hint for hint in _members(field) if hint is not type(None)]
  if len(hints) != 1:
    raise TypeError(f"{field.name} must have one type (has {field.type})")
  return hints[0]


def _check_kind(name, kind, value):
  if kind not in _KINDS:
    return
  words, base = _KINDS[kind]
  # True is an integer for Python, but not for a person.
  if not isinstance(value, base) or (isinstance(value, bool) != (kind is bool)):
    raise UserError(f"{name} must be {words} (got {value!r})")
  if kind is float and not math.isfinite(value):
    raise UserError(f"{name} must be finite (got {value})")


def _check_choice(name, choices, value):
  if value in choices:
    return
  known = [str(choice) for choice in choices if choice is not None]
  near = difflib.get_close_matches(str(value), known, 1)
  hint = f"; did you mean {near[0]}?" if near else ""
  raise UserError(
    f"{name} must be one of {', '.join(known)} (got {value}{hint})"
  )


def _check_range(name, metadata, value):
  ends = {end: metadata.get(end) for end in _ENDS}
  ends = {end: value for end, value in ends.items() if value is not None}
  if not all(_ENDS[end][0](value, ends[end]) for end in ends):
    words = " and ".join(f"{_ENDS[end][1]} {ends[end]}" for end in ends)
    raise UserError(f"{name} must be {words} (got {value})")


def _as_json(value):
  return list(map(_as_json, value)) if isinstance(value, tuple) else value


def _shown(value):
  """Return a default in words, or nothing where there is none to show."""
  if value is None or value is dataclasses.MISSING:
    return ""
  if isinstance(value, bool):
    return str(value).lower()
  if isinstance(value, tuple):
    return ", ".join(map(str, value))
  return str(value)


def _by_dataset_in_words(by_dataset):
  """Return for instance `digits and mnist 3, else 5`."""
  names: dict[str, list[str]] = {}
  for dataset, value in by_dataset.items():
    if dataset != "*":
      names.setdefault(_shown(value), []).append(dataset)
  parts = [f"{' and '.join(group)} {value}" for value, group in names.items()]
  if "*" in by_dataset:
    rest = _shown(by_dataset["*"])
    parts.append(f"else {rest}" if parts else rest)
  return ", ".join(parts)
