"""Settings of a scan."""

import dataclasses

from bdjax.defenses.k_arm import BanditSettings
from bdjax.defenses.neural_cleanse.schedule import SearchSettings
from bdjax.settings import setting


@dataclasses.dataclass(frozen=True)
class ScanSettings(BanditSettings, SearchSettings):
  """Settings of a scan; its searches are shorter than Neural Cleanse's."""

  augmentations: int = setting(
    16, "Copies of each image, while there are fewer than 1000.", low=1
  )
  steps: int = setting(
    200, "Steps of a class's search, at most; most stop early.", low=1
  )
  updates: int = setting(2, "Mini-batches of a step.", low=1)
  batch_size: int = setting(8, "Images of a mini-batch.", low=1)
  patience: int = setting(3, "Steps before the cost changes.", low=1)
  round_steps: int = setting(5, "Steps of a class in a round.", low=1)
  reference: int = setting(
    128, "Random classes that are searched to the end, to compare with.", low=4
  )
  class_batch: int | None = setting(
    None,
    "Classes of a round (default: one a device on CPU, else 32 or what fits).",
    low=1,
  )
  threshold: float = setting(
    2.0, "Anomaly index above which a class is suspected.", above=0
  )
  seed: int = setting(0, "Random seed of all draws.", low=0)
  checkpoint_seconds: float = setting(
    60.0, "Longest time between two checkpoints.", low=0, free=True
  )
