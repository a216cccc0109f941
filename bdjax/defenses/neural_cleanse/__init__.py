"""Neural Cleanse: for each class, the smallest trigger that leads to it.

References:
  Wang, Yao, Shan, Li, Viswanath, Zheng and Zhao (2019), Neural Cleanse:
  Identifying and Mitigating Backdoor Attacks in Neural Networks, IEEE S&P.
"""

from bdjax.defenses.neural_cleanse.anomaly import (
  anomaly_index,
  flagged,
  max_index,
  null_indices,
  p_value,
)
from bdjax.defenses.neural_cleanse.method import (
  METHOD,
  NeuralCleanseSettings,
  neural_cleanse,
)
from bdjax.defenses.neural_cleanse.schedule import SearchSettings
from bdjax.defenses.neural_cleanse.search import SearchState
from bdjax.defenses.neural_cleanse.searches import (
  ReverseEngineered,
  compile_search_steps,
  finish,
  init,
  max_searches,
)
from bdjax.defenses.neural_cleanse.unlearning import unlearn

__all__ = [
  "METHOD",
  "NeuralCleanseSettings",
  "ReverseEngineered",
  "SearchSettings",
  "SearchState",
  "anomaly_index",
  "compile_search_steps",
  "finish",
  "flagged",
  "init",
  "max_index",
  "max_searches",
  "neural_cleanse",
  "null_indices",
  "p_value",
  "unlearn",
]
