"""Random Backdoor: random pixels at a random place (Salem et al. 2022).

python -m experiments.random_backdoor --dataset=mnist
python -m experiments.random_backdoor --dataset=mnist --target_labels=all
"""

from . import cli

if __name__ == "__main__":
  cli.main_attack("random_backdoor")
