"""Commands that the lab adds to `diffsteer`."""
