"""A prompt in a model's chat format, still in two parts: what is read first, and what is asked."""

from __future__ import annotations

from transformers import PreTrainedTokenizerBase

SEAM = "\ue000"  # of Unicode's private use: it stands in no text


def check_chat(tokenizer: PreTrainedTokenizerBase) -> None:
    """Refuse a tokenizer without a chat format.

    Raises:
        ValueError: it has none.
    """
    if not getattr(tokenizer, "chat_template", None):
        raise ValueError("the model's tokenizer has no chat template: leave chat at none")


def in_chat(tokenizer: PreTrainedTokenizerBase, before: str, after: str) -> tuple[str, str]:
    """One message of a user, ready to be answered.

    Raises:
        ValueError: the tokenizer has no chat format.
    """
    check_chat(tokenizer)
    message = [{"role": "user", "content": f"{before}{SEAM}{after}"}]
    whole = str(tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=True))
    first, _, last = whole.partition(SEAM)
    return first, last
