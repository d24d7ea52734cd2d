"""Tiny text encoders and their tokenizer, where a pipeline takes no embeddings."""

from typing import Any

import torch
from tokenizers import Regex, Tokenizer, models, pre_tokenizers

from families.parts import randomised

LETTERS = [chr(code) for code in range(32, 127)] + ["\n"]
SPECIAL = ["<pad>", "</s>", "<unk>", "<s>"]
VOCABULARY = {token: i for i, token in enumerate(SPECIAL + LETTERS)}
WIDTH = 16
CHAT = "{% for m in messages %}{{ m.content if m.content is string else m.content[0].text }}"
CHAT += "{% endfor %}"


def spelling(length: int = 16, **more: Any) -> Any:
    """A tokenizer that spells: one token a character."""
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel(VOCABULARY, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Split(Regex("[\\s\\S]"), "isolated")
    return PreTrainedTokenizerFast(
        tokenizer_object=words,
        model_max_length=length,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        bos_token="<s>",
        **more,
    )


def decoder(kind: str, config: str, **more: Any) -> Any:
    """A language model of the given class, one layer of 16 channels."""
    import transformers

    torch.manual_seed(3)
    settings = {
        "vocab_size": len(VOCABULARY),
        "hidden_size": WIDTH,
        "intermediate_size": 2 * WIDTH,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 8,
        "max_position_embeddings": 1024,
        "bos_token_id": 3,
        "eos_token_id": 1,
        "pad_token_id": 0,
    }
    made = getattr(transformers, config)(**settings | more)
    return randomised(getattr(transformers, kind)(made))


def t5(kind: str = "T5EncoderModel", config: str = "T5Config", **more: Any) -> Any:
    """A T5 encoder, or one of its kin, one layer of 16 channels."""
    import transformers

    torch.manual_seed(3)
    settings = {
        "vocab_size": len(VOCABULARY),
        "d_model": WIDTH,
        "d_kv": 8,
        "d_ff": 2 * WIDTH,
        "num_layers": 1,
        "num_heads": 2,
    }
    made = getattr(transformers, config)(**settings | more)
    return randomised(getattr(transformers, kind)(made))


def qwen_vl(kind: str = "Qwen2_5_VLForConditionalGeneration") -> Any:
    """A Qwen 2.5 VL, of which pipelines of text run the language model alone."""
    import transformers

    torch.manual_seed(3)
    text = {
        "vocab_size": len(VOCABULARY),
        "hidden_size": WIDTH,
        "intermediate_size": 2 * WIDTH,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "rope_scaling": {"type": "mrope", "mrope_section": [1, 1, 2]},
    }
    vision = {
        "depth": 1,
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_heads": 2,
        "out_hidden_size": WIDTH,
    }
    config = transformers.Qwen2_5_VLConfig(text_config=text, vision_config=vision)
    return randomised(getattr(transformers, kind)(config))


def processor() -> Any:
    """A processor of texts alone, whose chat template joins the texts of the messages."""
    from transformers import ProcessorMixin

    class TextProcessor(ProcessorMixin):  # type: ignore[misc]
        def __init__(self, tokenizer: Any = None, chat_template: str | None = None) -> None:
            super().__init__(tokenizer, chat_template=chat_template)

        def apply_chat_template(self, messages: Any, **kwargs: Any) -> Any:
            return super().apply_chat_template([messages], **kwargs)

    return TextProcessor(spelling(), CHAT)


def vision(kind: str = "CLIPVisionModel", config: str = "CLIPVisionConfig", **more: Any) -> Any:
    """An image encoder of 32 px images in patches of 16."""
    import transformers

    settings = {
        "hidden_size": WIDTH,
        "intermediate_size": WIDTH,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 32,
        "patch_size": 16,
        "projection_dim": WIDTH,
    }
    made = getattr(transformers, config)(**settings | more)
    return randomised(getattr(transformers, kind)(made))


def image_processor() -> Any:
    from transformers import CLIPImageProcessor

    size = {"shortest_edge": 32}
    return CLIPImageProcessor(size=size, crop_size={"height": 32, "width": 32})


def qwen3_vl(layers: int = 1, width: int = WIDTH, kind: str = "Qwen3VLModel") -> Any:
    """A Qwen 3 VL of the given number of layers."""
    import transformers

    text = {
        "vocab_size": len(VOCABULARY),
        "hidden_size": width,
        "intermediate_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": 1,
        "num_key_value_heads": 1,
        "head_dim": 8,
        "rope_parameters": {"rope_type": "default", "mrope_section": [2, 1, 1], "rope_theta": 1e4},
    }
    vision = {
        "depth": 1,
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_heads": 2,
        "out_hidden_size": width,
        "num_position_embeddings": 16,
        "deepstack_visual_indexes": [0],
    }
    config = transformers.Qwen3VLConfig(text_config=text, vision_config=vision)
    return randomised(getattr(transformers, kind)(config))


def clip_text(kind: str = "CLIPTextModelWithProjection") -> Any:
    """A CLIP text encoder of 16 tokens."""
    import transformers

    config = transformers.CLIPTextConfig(
        vocab_size=len(VOCABULARY),
        hidden_size=WIDTH,
        intermediate_size=WIDTH,
        projection_dim=WIDTH,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=16,
        bos_token_id=3,
        eos_token_id=1,
        pad_token_id=0,
    )
    return randomised(getattr(transformers, kind)(config))
