"""Fields of an untrusted description: each function gives the value back, or raises ValueError or TypeError."""

import math
from typing import Any

from runtime.outputs.categories import NO_CLASS, UNNAMED

LARGEST_SIDE, LARGEST_COUNT, LONGEST_TEXT, LONGEST_LIST = 1 << 16, 1 << 16, 1 << 16, 1000
LONGEST_WORD, MOST_WORDS = 1000, 255  # a picture of 8 bits has an index for each word, and 0 for none


def refuse_constant(name: str) -> float:
    """For `json.loads`: NaN and Infinity are invalid."""
    raise ValueError(f"{name} is no number of JSON")


def whole(name: str, value: Any, least: int, most: int) -> int:
    """A whole number within bounds."""
    if type(value) is not int or not least <= value <= most:
        raise ValueError(f"{name}: expected a whole number from {least} to {most}, found {repr(value)[:80]}")
    return value


def number(name: str, value: Any, *, zero: bool = False) -> float:
    """A finite number above 0, or from 0."""
    found = float(value) if type(value) in (int, float) else math.nan
    if not (0 <= found < math.inf) or (found == 0 and not zero):
        raise ValueError(f"{name}: expected a finite number above 0, found {repr(value)[:80]}")
    return found


def text(name: str, value: Any, longest: int = LONGEST_TEXT) -> str:
    """A text that can be printed and stored as UTF-8."""
    if not isinstance(value, str) or len(value) > longest or any("\ud800" <= letter <= "\udfff" for letter in value):
        raise ValueError(f"{name}: expected a text, found {repr(value)[:80]}")
    return value


def items(name: str, value: Any) -> list[Any]:
    """A list that is not long."""
    if not isinstance(value, list) or len(value) > LONGEST_LIST:
        raise TypeError(f"{name}: expected a list, found {repr(value)[:80]}")
    return value


def words(name: str, value: Any) -> tuple[str, ...]:
    """Words that segments may be called: each once (whatever its case), not empty, and not "segment" or "unnamed"."""
    found = tuple(text(name, word, LONGEST_WORD) for word in items(name, value))
    if len(found) > MOST_WORDS:
        raise ValueError(f"{name}: expected at most {MOST_WORDS} words, found {len(found)}")
    seen: set[str] = set()
    for word in found:
        if not word.isprintable() or word != " ".join(word.split()) or not word or "," in word:
            raise ValueError(f"{name}: expected words that are not empty, without commas, found {word!r}")
        if word.casefold() in seen:
            raise ValueError(f"{name}: expected each word once, found {word!r} twice")
        seen.add(word.casefold())
    for reserved in seen & {UNNAMED, NO_CLASS}:
        raise ValueError(f"{name}: {reserved!r} is what segments without a word are called; choose another word")
    return found
