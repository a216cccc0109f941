"""STRIP in front of a fine-pruned network: reject, else answer repaired.

python -m experiments.strip_fine_pruning --run=runs/badnets-mnist
"""

from . import cli

if __name__ == "__main__":
  cli.main_defense("strip_fine_pruning")
