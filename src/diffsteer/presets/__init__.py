"""What published models were sampled with, as tables."""
