"""Networks small enough to compile in a moment."""

from benchmarks import script

CNN = script.Case("cnn", 8, (8, 8, 1))
RESNET = script.Case("resnet18", 4, (8, 8, 3))
