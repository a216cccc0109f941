from tiny_runs import copied, tiny, trained

__all__ = ["copied", "tiny", "trained"]
