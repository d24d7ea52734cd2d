"""The published ADM and IDDPM checkpoints by file name, with the flags of their README files.

Source: https://github.com/openai/guided-diffusion and https://github.com/openai/improved-diffusion.
IDDPM's code rescales timesteps unless told not to, has no heads of given channels and changes
resolution by convolutions; that is written out here.
"""

from dataclasses import replace

from diffsteer.models.adm.flags import Flags

_ADM = Flags(
    attention_resolutions="32,16,8",
    resblock_updown=True,
    learn_sigma=True,
    class_cond=True,
    num_channels=256,
    num_head_channels=64,
)
_ADM256 = replace(_ADM, image_size=256)
_LSUN = replace(_ADM256, class_cond=False, dropout=0.1)
_CLASSIFIER = Flags(
    attention_resolutions="32,16,8", resblock_updown=True, num_head_channels=64, classifier=True
)
_IDDPM = Flags(
    num_res_blocks=3,
    learn_sigma=True,
    diffusion_steps=4000,
    noise_schedule="cosine",
    rescale_timesteps=True,
)
_CIFAR = replace(_IDDPM, image_size=32, dropout=0.3)
_IDDPM_LSUN = Flags(
    image_size=256,
    num_heads=1,
    learn_sigma=True,
    use_scale_shift_norm=False,
    attention_resolutions="16",
)

PUBLISHED: dict[str, Flags] = {
    "64x64_diffusion.pt": replace(
        _ADM,
        num_channels=192,
        num_res_blocks=3,
        dropout=0.1,
        noise_schedule="cosine",
        use_new_attention_order=True,
    ),
    "128x128_diffusion.pt": replace(_ADM, image_size=128, num_head_channels=-1),
    "256x256_diffusion.pt": _ADM256,
    "256x256_diffusion_uncond.pt": replace(_ADM256, class_cond=False),
    "512x512_diffusion.pt": replace(_ADM, image_size=512),
    "lsun_bedroom.pt": _LSUN,
    "lsun_cat.pt": _LSUN,
    "lsun_horse.pt": _LSUN,
    "lsun_horse_nodropout.pt": replace(_LSUN, dropout=0.0),
    "64x64_classifier.pt": replace(_CLASSIFIER, num_res_blocks=4, noise_schedule="cosine"),
    "128x128_classifier.pt": replace(_CLASSIFIER, image_size=128),
    "256x256_classifier.pt": replace(_CLASSIFIER, image_size=256),
    "512x512_classifier.pt": replace(_CLASSIFIER, image_size=512),
    "imagenet64_uncond_100M_1500K.pt": _IDDPM,
    "imagenet64_uncond_vlb_100M_1500K.pt": _IDDPM,
    "imagenet64_cond_270M_250K.pt": replace(
        _IDDPM, num_channels=192, class_cond=True, rescale_timesteps=False
    ),
    "cifar10_uncond_50M_500K.pt": _CIFAR,
    "cifar10_uncond_vlb_50M_500K.pt": _CIFAR,
    "lsun_uncond_100M_1200K_bs128.pt": _IDDPM_LSUN,
    "lsun_uncond_100M_2400K_bs64.pt": _IDDPM_LSUN,
}
"""Flags by file name."""
