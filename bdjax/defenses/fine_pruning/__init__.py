"""Fine-pruning: prune, then fine-tune what is left."""
