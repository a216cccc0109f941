"""The peers in PyTorch, as one who knows it would write them."""
