"""Learning-rate schedule of training: a warm-up, and a decay by the square root of the images."""

from diffsteer.train.settings import Training


def learning_rate(training: Training, images: int) -> float:
    """Learning rate of the step after `images` images, 0 in the first of a warm-up.

    Source: Karras et al. 2024, https://arxiv.org/abs/2312.02696, with their constants in
    images: sqrt(flat / max(images, flat)) min(images / warmup, 1).
    """
    rise = min(1.0, images / training.warmup) if training.warmup else 1.0
    fall = max(1.0, images / training.flat) ** -0.5 if training.flat else 1.0
    return training.rate * rise * fall
