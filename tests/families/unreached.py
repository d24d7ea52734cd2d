"""Networks of diffusers without a tiny pipeline here, and why."""

DEPRECATED = "runs in deprecated pipelines alone"
PART = "is a part of other networks"

UNREACHED = (
    ("DreamLiteTransformer2DModel", PART),
    ("Kandinsky6SRTransformer3DModel", "upscales video in tiles and has no condition to guide"),
    ("MiniMaxH3Transformer3DModel", "one packed sequence of text, video and audio, no guider"),
    ("OmniGenTransformer2DModel", "its pipeline needs torchvision when it is made"),
    ("RFD4ProteinaTransformer", "makes proteins, with a sampler of its own"),
    ("SanaWMLTX2RefinerTransformer3DModel", "refines the latents of SANA-WM outside a pipeline"),
    ("T5FilmDecoder", DEPRECATED),
    ("Transformer2DModel", PART),
    ("TransformerTemporalModel", PART),
    ("UNet1DModel", DEPRECATED),
    ("UVit2DModel", DEPRECATED),
    ("UniDiffuserModel", DEPRECATED),
    ("WanAnimate2Transformer3DModel", "its modular blocks need a driving video and its caches"),
    ("WuerstchenPrior", DEPRECATED),
)
