"""Where the outputs of one photograph or clip go."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from runtime.frames.source import Source


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

    @classmethod
    def of(cls, source: Source, folder: Path, settings: Mapping[str, object]) -> Target:
        """Where the outputs of a source go, below the output folder."""
        name = source.target if source.address else source.target.with_name(source.path.name)
        return cls(folder / source.target, folder, name.as_posix(), settings)

    @property
    def key(self) -> str:
        """The stem below the folder: no other input of the run has it."""
        return self.stem.relative_to(self.folder).as_posix()

    def path(self, ending: str) -> Path:
        """The path of an output: `ending` follows the stem."""
        return self.stem.with_name(f"{self.stem.name}{ending}")
