"""Pruning: channels that clean images leave dormant go (Liu et al. 2018).

python -m experiments.pruning --run=runs/badnets-mnist
python -m experiments.pruning --run=runs/badnets-mnist --layer=conv_1
"""

from . import cli

if __name__ == "__main__":
  cli.main_defense("pruning")
