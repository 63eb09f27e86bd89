"""Where the outputs of one photograph or clip go."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Target:
    """Where the outputs of one photograph or clip go.

    Attributes:
        stem: their path without `_<kind>` and suffix.
        folder: of the whole run; files that list all pictures are in it.
        name: the input's path below the folder that was searched, `animals/cat.jpg`, for files that list pictures.
        settings: how the labels are made, by name; values that JSON has.
    """

    stem: Path
    folder: Path
    name: str
    settings: Mapping[str, object] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """The stem below the folder: no other input of the run has it."""
        return self.stem.relative_to(self.folder).as_posix()

    def path(self, ending: str) -> Path:
        """The path of an output: `ending` follows the stem."""
        return self.stem.with_name(f"{self.stem.name}{ending}")
