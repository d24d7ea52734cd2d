"""A CLIP tokenizer whose words are those of the captions."""

import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

START, END = "<|startoftext|>", "<|endoftext|>"
WORDS = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
SUFFIX = "</w>"
"""Ends the last token of a word."""


def tokenizer_for(captions: Iterable[str]) -> Any:
    """Make a tokenizer of at most 4,000 byte pairs, long enough for the longest caption.

    Words of the captions become one token each, the most frequent first; others are spelled.
    """
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers
    from transformers import CLIPTokenizer

    seen = Counter(captions)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    learned = Tokenizer(models.BPE(end_of_word_suffix=SUFFIX, unk_token=END))
    learned.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    learned.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORDS), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    final = sorted({piece[-1] + SUFFIX for caption in seen for piece in _pieces(learned, caption)})
    learned.train_from_iterator(
        sorted(seen),
        trainers.BpeTrainer(
            vocab_size=4_000 - 2,  # START and END come after
            min_frequency=1,
            show_progress=False,
            initial_alphabet=alphabet,
            special_tokens=final,  # else numbered in the order of a hash table, new in each process
            end_of_word_suffix=SUFFIX,
        ),
    )
    model = json.loads(learned.to_str())["model"]
    learned_tokens = sorted(model["vocab"], key=model["vocab"].__getitem__)[len(final) :]
    single, merged = learned_tokens[: len(alphabet)], learned_tokens[len(alphabet) :]
    tokens = [*single, *final, *merged, START, END]
    vocab = {token: i for i, token in enumerate(tokens)}
    with TemporaryDirectory() as folder:
        vocab_file, merges_file = Path(folder) / "vocab.json", Path(folder) / "merges.txt"
        vocab_file.write_text(json.dumps(vocab), "utf-8")
        merges = "\n".join(" ".join(pair) for pair in model["merges"])
        merges_file.write_text(f"#version: 0.2\n{merges}\n", "utf-8")
        spoken = CLIPTokenizer(str(vocab_file), str(merges_file))
        longest = max(len(ids) for ids in spoken(sorted(seen)).input_ids)
        return CLIPTokenizer(str(vocab_file), str(merges_file), model_max_length=longest)


def _pieces(tokenizer: Any, caption: str) -> list[str]:
    """Words of a caption as the trainer sees them, in the letters of its alphabet."""
    text = tokenizer.normalizer.normalize_str(caption)
    return [piece for piece, _ in tokenizer.pre_tokenizer.pre_tokenize_str(text)]
