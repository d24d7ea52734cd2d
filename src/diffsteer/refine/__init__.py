"""Refined noise instead of guidance (Ahn et al. 2024, https://arxiv.org/abs/2412.03895)."""
