"""A tokenizer learned from the training text: byte-level BPE, each digit a token of its own."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

END = "<|end|>"  # token 0: ends a document
LANDMARK = "<|landmark|>"
CONTROL = "<|control|>"
SMALLEST = 260  # 256 bytes, END and a few merges
SAMPLE_CHARACTERS = 32_000_000  # merges hardly change after that much text


def learn(texts: Iterable[str], size: int) -> Tokenizer:
    """A tokenizer of `size` tokens; the same texts give the same one.

    Every text can be encoded, because each of the 256 bytes is a token. Digits are cut one by one, so that a number is
    copied digit by digit instead of being remembered whole.

    Raises:
        ValueError: too few tokens for the bytes, or too little text for so many tokens.
    """
    if size < SMALLEST:
        raise ValueError(f"a vocabulary of {size} has no room for the 256 bytes: take at least {SMALLEST}")
    tokenizer = Tokenizer(models.BPE())
    digits, pieces = pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, pieces])
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=[END], initial_alphabet=sorted(alphabet), show_progress=False
    )
    tokenizer.train_from_iterator(_parts(texts), trainer)
    if tokenizer.get_vocab_size() != size:
        raise ValueError(
            f"the text gives {tokenizer.get_vocab_size()} tokens, {size} were asked for: lower `vocabulary`"
        )
    return tokenizer


def _parts(texts: Iterable[str]) -> Iterator[str]:
    """A part of each document, so that long books do not fill the sample."""
    left = SAMPLE_CHARACTERS
    for text in texts:
        part = text[: SAMPLE_CHARACTERS // 64]
        yield part
        left -= len(part)
        if left <= 0:
            return


def with_landmarks(tokenizer: Tokenizer) -> tuple[int, int]:
    """Add the landmark token and the control token behind the vocabulary; returns their numbers."""
    tokenizer.add_special_tokens([LANDMARK, CONTROL])
    known = tokenizer.get_vocab()
    return known[LANDMARK], known[CONTROL]
