"""GoodNet: the network and its pruned copy answer together.

python -m experiments.goodnet --run=runs/badnets-mnist
"""

from . import cli

if __name__ == "__main__":
  cli.main_defense("goodnet")
