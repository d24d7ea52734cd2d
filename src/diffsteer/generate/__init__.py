"""From a recipe and seeds to images."""
