"""The code in README, docs and tutorial, for the tests that run it."""

import json
import pathlib
import re
from typing import NamedTuple

from launching import REPOSITORY

PAGES = [REPOSITORY / "README.md", *sorted(REPOSITORY.glob("docs/*.md"))]
NOTEBOOK = REPOSITORY / "docs" / "tutorial.ipynb"

_FENCE = re.compile(r"^```(\S*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
# A line before a block, or the first of its paragraph, that names a file.
_FILE = re.compile(r"`([\w/]+\.py)`, (?:new|edited)")


class Block(NamedTuple):
  """A fenced block.

  Attributes:
    language: of the fence.
    code: its lines.
    file: the file that the paragraph above says it belongs to, or None.
  """

  language: str
  code: str
  file: str | None


def blocks(page: pathlib.Path) -> list[Block]:
  """Return the fenced blocks of a page, in order."""
  text, found, end = page.read_text(), [], 0
  for match in _FENCE.finditer(text):
    above = text[end : match.start()].strip().split("\n\n")[-1]
    name = _FILE.match(above)
    found.append(Block(match[1], match[2], name and name[1]))
    end = match.end()
  return found


def inline_code(page: pathlib.Path) -> list[str]:
  """Return what stands in single backticks outside of blocks."""
  return re.findall(r"`([^`]+)`", _FENCE.sub("", page.read_text()))


def notebook_cells() -> list[str]:
  """Return the code cells of the tutorial."""
  cells = json.loads(NOTEBOOK.read_text())["cells"]
  return ["".join(c["source"]) for c in cells if c["cell_type"] == "code"]


def shortened(code: str) -> str:
  """Return code with so few steps that it takes seconds, not minutes."""
  code = re.sub(r"epochs=\d+", "epochs=1", code)
  few = "steps=15, updates=4, patience=2, asr_threshold=0.1"
  code = re.sub(r"(NeuralCleanseSettings\()steps=\d+", rf"\g<1>{few}", code)
  return re.sub(r"(ScanSettings\()steps=\d+", r"\g<1>steps=15", code)
