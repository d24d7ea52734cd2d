"""Doctor of checkpoints: what a checkpoint is, what would go wrong with it, and its repair."""
