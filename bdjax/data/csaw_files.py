"""The `.h5` files of CSAW-HackML-2020, and where a folder has them."""

import itertools
import os
import pathlib
from typing import NamedTuple

from bdjax.errors import UserError

_CHALLENGE = (
  "https://drive.google.com/drive/folders/13o2ybRJ1BkGUvfmQEeZqDo1kskyFywab"
)
_LAB3 = (
  "https://drive.google.com/drive/folders/1Rs68uH8Xqa4j6UxG53wzD0uyI8347dSq"
)

_MULTI = "Multi-trigger Multi-target"
# Where each set may stand below the user's folder. The first name is the one
# that the READMEs of csaw-hackml/CSAW-HackML-2020 give, without its `data/`.
FILES = {
  "clean_validation": ("clean_validation_data.h5",),
  "clean_test": ("clean_test_data.h5",),
  "sunglasses": ("sunglasses_poisoned_data.h5",),
  "anonymous_1": ("anonymous_1_poisoned_data.h5",),
  "multi/lipstick": (
    f"{_MULTI}/lipstick_poisoned_data.h5",
    "lipstick_poisoned_data.h5",
  ),
  "multi/eyebrows": (
    f"{_MULTI}/eyebrows_poisoned_data.h5",
    "eyebrows_poisoned_data.h5",
  ),
  # Not in the folder itself: there the name is the sunglasses network's.
  "multi/sunglasses": (f"{_MULTI}/sunglasses_poisoned_data.h5",),
  "lab3/clean_validation": ("cl/valid.h5", "valid.h5"),
  "lab3/clean_test": ("cl/test.h5", "test.h5"),
  "lab3/bd_validation": ("bd/bd_valid.h5", "bd_valid.h5"),
  "lab3/bd_test": ("bd/bd_test.h5", "bd_test.h5"),
}
# The repository keeps its data in these, below its root.
_SUBFOLDERS = ("", "data", "lab3", "lab3/data")


class Network(NamedTuple):
  """The sets of one of the challenge's networks.

  Attributes:
    validation: the defender's clean set, a key of `FILES`.
    test: the clean test set, a key of `FILES`.
    triggered: by the trigger's name, the triggered test set: a key of `FILES`.
    targets: by the trigger's name, the target label.
    triggered_validation: as `triggered`, of validation images; only `lab3`
      has one.
  """

  validation: str
  test: str
  triggered: dict[str, str]
  targets: dict[str, int]
  triggered_validation: dict[str, str]

  @property
  def needed(self) -> tuple[str, ...]:
    """All its sets: keys of `FILES`, for `find`."""
    triggered = (*self.triggered.values(), *self.triggered_validation.values())
    return (self.validation, self.test, *triggered)


_CLEAN = ("clean_validation", "clean_test")
NETWORKS = {
  "lab3": Network(
    "lab3/clean_validation",
    "lab3/clean_test",
    {"sunglasses": "lab3/bd_test"},
    {"sunglasses": 0},
    {"sunglasses": "lab3/bd_validation"},
  ),
  "sunglasses": Network(
    *_CLEAN, {"sunglasses": "sunglasses"}, {"sunglasses": 0}, {}
  ),
  "anonymous_1": Network(
    *_CLEAN, {"lipstick": "anonymous_1"}, {"lipstick": 0}, {}
  ),
  "multi_trigger_multi_target": Network(
    *_CLEAN,
    {name: f"multi/{name}" for name in ("lipstick", "eyebrows", "sunglasses")},
    {"lipstick": 1, "eyebrows": 5, "sunglasses": 8},
    {},
  ),
}


def find(
  data_dir: str | os.PathLike, needed: tuple[str, ...] = ()
) -> dict[str, pathlib.Path]:
  """Find the challenge's files in the user's folder.

  The folder may also be the root of a clone of the challenge's repository,
  whose `data/` and `lab3/data/` are looked into.

  Args:
    data_dir: the folder.
    needed: keys of `FILES` that must be there.

  Returns:
    The paths of the files that are there, by key and in the order of `FILES`.

  Raises:
    UserError: none is there, or one that is needed is not: it says from where
      to download them and where to put them.
  """
  folder = pathlib.Path(data_dir).expanduser()
  paths = {}
  for key, names in FILES.items():
    for subfolder, name in itertools.product(_SUBFOLDERS, names):
      # os.path says no where pathlib raises: a forbidden folder, a long name.
      if os.path.isfile(path := folder / subfolder / name):
        paths.setdefault(key, path)
  missing = [key for key in needed if key not in paths]
  if missing or not paths:
    keys = missing or list(FILES)
    names = ", ".join(FILES[key][0] for key in keys)
    which = "not there" if missing else "none of these is there"
    raise UserError(f"{folder}: {which}: {names}: {download_hint(keys)}")
  return paths


def download_hint(keys: list[str]) -> str:
  """Return the end of an error: from where to download sets, and whereto.

  Args:
    keys: of `FILES`.
  """
  is_lab3 = [key.startswith("lab3/") for key in keys]
  links = [_LAB3 if all(is_lab3) else _CHALLENGE]
  if any(is_lab3) and not all(is_lab3):
    links.append(f"{_LAB3} (lab3)")
  return (
    f"download them from {' and '.join(links)}, which the README of "
    "github.com/csaw-hackml/CSAW-HackML-2020 links to, and put them there"
  )
