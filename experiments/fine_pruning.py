"""Fine-pruning: prune, then fine-tune what is left (Liu et al. 2018).

python -m experiments.fine_pruning --run=runs/badnets-mnist
python -m experiments.fine_pruning --run=runs/badnets-mnist --by=value
"""

from . import cli

if __name__ == "__main__":
  cli.main_defense("fine_pruning")
