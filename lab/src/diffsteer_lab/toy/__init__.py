"""The two-dimensional experiment of the paper on autoguidance, with all the truth known."""
