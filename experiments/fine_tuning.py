"""Fine-tuning on the defender's clean images, the baseline of repairs.

python -m experiments.fine_tuning --run=runs/badnets-mnist
"""

from . import cli

if __name__ == "__main__":
  cli.main_defense("fine_tuning")
