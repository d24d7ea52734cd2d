"""Training presets of the models that ship."""
