"""Categories of segments in files for other programs: those without a word, and one for each word."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from runtime.words import Names

UNNAMED = "segment"  # the category of a segment without a word
NO_CLASS = "unnamed"  # what index 0 of `semantic` is called
FIRST = 1  # its number; the words follow


def categories(words: Iterable[str], more: Mapping[str, Any]) -> list[dict[str, Any]]:
    """COCO's list of categories. `more`: what is the same in each."""
    return [{"id": number, "name": name, **more} for number, name in enumerate((UNNAMED, *words), FIRST)]


def category_of(label: int, names: Names | None) -> dict[str, Any]:
    """A segment's `category_id` and `score`; nothing without words."""
    return {} if names is None else {"category_id": FIRST + names.index(label), "score": names.score(label)}


class Union:
    """The words of several pictures, which may have been named by different engines, under common numbers."""

    def __init__(self) -> None:
        self._numbers = {UNNAMED: FIRST}

    @property
    def words(self) -> tuple[str, ...]:
        """All words so far, in the order of their numbers."""
        return tuple(self._numbers)[1:]

    def renumber(self, words: Iterable[str], segments: Iterable[dict[str, Any]]) -> None:
        """Give a picture's segments the common numbers, in place: `category_id` is that of the picture's own words.

        Raises ValueError or TypeError where they are no texts, or there is no such word.
        """
        own = (UNNAMED, *words)
        if isinstance(words, str) or not all(isinstance(name, str) for name in own):
            raise TypeError(f"expected words, found {words!r}")
        common = [self._numbers.setdefault(name, FIRST + len(self._numbers)) for name in own]
        for segment in segments:
            if not isinstance(segment, dict):
                raise TypeError(f"expected an object, found {segment!r}")
            if "category_id" in segment:
                number = segment["category_id"]
                if type(number) is not int or not 0 <= number - FIRST < len(common):
                    raise ValueError(f"category_id: expected {FIRST} to {len(common)}, found {number!r}")
                segment["category_id"] = common[number - FIRST]
