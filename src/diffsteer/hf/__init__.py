"""diffusers pipelines and schedulers."""
