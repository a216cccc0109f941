"""Backdoor attacks, one published method a file."""

from bdjax.attacks.badnets import METHOD as _BADNETS
from bdjax.attacks.badnets import BadNetsSettings, badnets
from bdjax.attacks.ban import METHOD as _BAN
from bdjax.attacks.ban import BanSettings, ban
from bdjax.attacks.base import (
  Attack,
  AttackMethod,
  TriggerVariables,
)
from bdjax.attacks.blended import METHOD as _BLENDED
from bdjax.attacks.blended import BlendedSettings, blended
from bdjax.attacks.cban import METHOD as _CBAN
from bdjax.attacks.cban import CbanSettings, cban
from bdjax.attacks.input_aware import METHOD as _INPUT_AWARE
from bdjax.attacks.input_aware import InputAwareSettings, input_aware
from bdjax.attacks.patches import Patch, Trigger, patch_attack, stamp
from bdjax.attacks.poisoned_set import PoisonedSet, poison_dataset
from bdjax.attacks.poisoning import poison_batch
from bdjax.attacks.random_backdoor import METHOD as _RANDOM_BACKDOOR
from bdjax.attacks.random_backdoor import (
  RandomBackdoorSettings,
  random_backdoor,
)
from bdjax.attacks.wanet import METHOD as _WANET
from bdjax.attacks.wanet import WanetSettings, wanet

ATTACKS: dict[str, AttackMethod] = {
  "badnets": _BADNETS,
  "random_backdoor": _RANDOM_BACKDOOR,
  "ban": _BAN,
  "cban": _CBAN,
  "blended": _BLENDED,
  "wanet": _WANET,
  "input_aware": _INPUT_AWARE,
}

__all__ = [
  "ATTACKS",
  "Attack",
  "AttackMethod",
  "BadNetsSettings",
  "BanSettings",
  "BlendedSettings",
  "CbanSettings",
  "InputAwareSettings",
  "Patch",
  "PoisonedSet",
  "RandomBackdoorSettings",
  "Trigger",
  "TriggerVariables",
  "WanetSettings",
  "badnets",
  "ban",
  "blended",
  "cban",
  "input_aware",
  "patch_attack",
  "poison_batch",
  "poison_dataset",
  "random_backdoor",
  "stamp",
  "wanet",
]
