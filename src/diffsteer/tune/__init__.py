"""Search for the recipe with the best images at each cost."""
