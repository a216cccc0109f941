"""BaN: triggers from a network trained with the classifier (Salem et al. 2022).

python -m experiments.ban --dataset=mnist
python -m experiments.ban --dataset=mnist --target_labels=all
"""

from . import cli

if __name__ == "__main__":
  cli.main_attack("ban")
