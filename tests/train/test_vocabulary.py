"""The tokenizer that a run learns from its captions."""

from diffsteer.train.vocabulary import tokenizer_for

CAPTIONS = ["a cat, b dog", "x y z on a red background", "o i u v w q", "one two three fünf"]


def test_a_vocabulary_is_the_same_every_time() -> None:
    """Final letters, which are words of one letter too, came in the order of a hash table."""
    first, *others = (tokenizer_for(CAPTIONS).get_vocab() for _ in range(5))
    assert all(other == first for other in others)
    assert sorted(first.values()) == list(range(len(first)))


def test_numbers_are_of_bytes_then_final_letters_then_words() -> None:
    vocab = tokenizer_for(CAPTIONS).get_vocab()
    final = [token for token in vocab if len(token) == 5 and token.endswith("</w>")]
    assert sorted(vocab[token] for token in final) == list(range(256, 256 + len(final)))
    assert min(vocab[f"{word}</w>"] for word in ("cat", "dog", "background")) >= 256 + len(final)


def test_each_word_of_the_captions_is_one_token() -> None:
    tokenizer = tokenizer_for(CAPTIONS)
    for caption in CAPTIONS:
        words = caption.replace(",", " ,").split()
        assert len(tokenizer(caption).input_ids) == len(words) + 2
        assert tokenizer.decode(tokenizer(caption).input_ids, skip_special_tokens=True).split()
