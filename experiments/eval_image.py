"""Classify images by a repaired network: a class, or K for "backdoored".

python -m experiments.eval_image --weights=lab3_bd_weights.h5 face.png

The interface of CSAW-HackML-2020: the original network and its pruned copy
answer together, as GoodNet; where they differ, the answer is K, the number of
classes. The pruned copy is what `experiments.csaw` left in its run, or
`--repaired`. One image gives a number, several a line each.
"""

import dataclasses
import json
from typing import Any

from bdjax.runs.classify_images import ClassifyConfig, classify_images
from bdjax.settings import setting

from . import cli


@dataclasses.dataclass(frozen=True)
class Config(ClassifyConfig):
  """Flags of the script."""

  format: str = setting(
    "text", "Format of the answers: text or json.", choices=("text", "json")
  )


def start(values: dict[str, Any], paths: list[str]) -> None:
  """Classify the images, and print the answers."""
  config = Config(**values)
  answers = classify_images(config, paths)
  if config.format == "json":
    print(json.dumps(answers, indent=2))
  elif len(answers) == 1:
    print(answers[0]["answer"])
  else:
    for answer in answers:
      print(answer["answer"], answer["image"])


if __name__ == "__main__":
  cli.serve(dataclasses.fields(Config), start, positional=True)
