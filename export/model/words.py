"""Words in prompts: which prompts hold them, and which tokens are theirs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from runtime.errors import DiffSegError

if TYPE_CHECKING:
    import torch

# (number of the prompt, positions of the word's tokens in it), for each word.
Places = tuple[tuple[int, tuple[int, ...]], ...]


@dataclass(frozen=True, slots=True)
class PromptWords:
    """The prompts of the words' pass through the U-Net, and where the words are in them.

    `words`: in the order that was given. `places`: see `place_words`. `embeddings`: float32 [prompts, tokens,
    channels]. `pooled`: float32 [prompts, channels], None for a family without it.
    """

    words: tuple[str, ...]
    places: Places
    embeddings: torch.Tensor
    pooled: torch.Tensor | None

    def selection(self) -> torch.Tensor:
        """float32 [prompts, words, tokens]: what each token counts for each word, the mean over the word's tokens."""
        import torch

        chosen = torch.zeros(len(self.embeddings), len(self.words), self.embeddings.shape[1])
        for word, (prompt, tokens) in enumerate(self.places):
            chosen[prompt, word, list(tokens)] = 1 / len(tokens)
        return chosen


def place_words(words: Sequence[str], tokenizer: Any, length: int) -> tuple[list[str], Places]:
    """As few prompts as hold the words in their order, with commas between them; and each word's place.

    `length`: tokens of a prompt, the special ones at its two ends included. Raises DiffSegError for a word that is
    longer than a prompt, or whose tokens cannot be told from the others.
    """
    own = [list(tokenizer(word, add_special_tokens=False).input_ids) for word in words]
    comma = list(tokenizer(",", add_special_tokens=False).input_ids)
    first, *_, last = tokenizer("").input_ids
    held: list[list[int]] = []
    prompts: list[list[int]] = []
    places: list[tuple[int, tuple[int, ...]]] = []
    for number, (word, tokens) in enumerate(zip(words, own, strict=True)):
        if not tokens or set(tokens) & set(tokenizer.all_special_ids):
            raise DiffSegError(f"--words: the model's tokenizer does not know {word!r}; choose another word")
        if len(tokens) > length - 2:
            raise DiffSegError(
                f"--words: {word[:40]!r}… has {len(tokens)} tokens, a prompt of this model takes {length - 2}; "
                "shorten it"
            )
        if not prompts or len(prompts[-1]) + len(comma) + len(tokens) > length - 2:
            prompts.append([])
            held.append([])
        separator = comma if prompts[-1] else []
        start = 1 + len(prompts[-1]) + len(separator)
        prompts[-1] += [*separator, *tokens]
        held[-1].append(number)
        places.append((len(prompts) - 1, tuple(range(start, start + len(tokens)))))
    texts = [", ".join(words[number] for number in numbers) for numbers in held]
    for text, tokens in zip(texts, prompts, strict=True):
        if list(tokenizer(text).input_ids) != [first, *tokens, last]:
            raise DiffSegError(f"--words: the model's tokenizer does not split {text[:80]!r} at its commas; reword it")
    return texts, tuple(places)
