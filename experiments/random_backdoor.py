"""Random Backdoor: triggers of random pixels (Salem et al. 2022).

python -m experiments.random_backdoor --dataset=mnist
python -m experiments.random_backdoor --dataset=mnist --target_labels=all
"""

from experiments import common

if __name__ == "__main__":
  common.main("random_backdoor")
