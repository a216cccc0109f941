from tiny_runs import cheap, copied, tiny, trained

__all__ = ["cheap", "copied", "tiny", "trained"]
