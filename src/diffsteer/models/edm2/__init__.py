"""EDM2: networks, published snapshots, presets (Karras et al. 2024)."""
