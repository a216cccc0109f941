"""Write the poisoned data set of an attack, for use in any framework.

python -m experiments.poison --attack=badnets --dataset=mnist --output=poisoned
python -m experiments.clean --dataset=poisoned/poisoned.npz \
  --defender_fraction=0 --augment=crop

The folder gets poisoned.npz, with the poisoned training set, the test set and
the triggered test images, about.json, and all of them as PNG files. Attacks
whose triggers are trained with the network, such as ban, have no such set.
--help shows the flags of the attack that --attack names.
"""

import dataclasses
import sys
from typing import Any

import rich.box
import rich.console
import rich.table

from bdjax.attacks import AttackMethod
from bdjax.runs.poison import (
  LEFT_OUT,
  PoisonConfig,
  export_poisoned,
  find_attack,
)

from . import cli


def attack_name(argv: list[str]) -> str:
  """Return the value of --attack, which says what other flags there are."""
  name = PoisonConfig.attack
  for argument, following in zip(argv, [*argv[1:], ""], strict=False):
    flag, equals, value = argument.partition("=")
    if flag in ("--attack", "-attack"):
      name = value if equals else following
  return name


def print_rates(about: dict[str, Any], directory: str) -> None:
  """Print what was poisoned.

  Args:
    about: what `about.json` says.
    directory: where it lies.
  """
  table = rich.table.Table(
    title=f"{about['attack']} on {about['data']['name']}",
    title_justify="left",
    box=rich.box.SIMPLE_HEAD,
  )
  table.add_column("realised")
  table.add_column("", justify="right")
  for name, value in about["rates"].items():
    text = f"{value:.2%}" if isinstance(value, float) else str(value)
    table.add_row(name.replace("_", " "), text.strip("[]"))
  console = rich.console.Console(highlight=False)
  console.print(table)
  console.print(f"  {directory}", soft_wrap=True)


def main() -> None:
  """Export from the command line."""
  methods: list[AttackMethod] = []
  name = attack_name(sys.argv[1:])
  status = cli.guarded(lambda: methods.append(find_attack(name)), ["attack"])
  if status:
    sys.exit(status)
  kind = methods[0].settings
  shared = dataclasses.fields(PoisonConfig)
  own = [f for f in dataclasses.fields(kind) if f.name not in LEFT_OUT]

  def start(values: dict[str, Any]) -> None:
    config = PoisonConfig(**{f.name: values[f.name] for f in shared})
    settings = kind(**{f.name: values[f.name] for f in own})
    print_rates(export_poisoned(config, settings), config.output)

  cli.serve([*shared, *own], start)


if __name__ == "__main__":
  main()
