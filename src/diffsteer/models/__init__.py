"""Published checkpoints, read without running anything of them."""
