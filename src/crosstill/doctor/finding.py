"""What the doctor found: one line of the table each."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, TypeVar

from crosstill.errors import CrosstillError

Level = Literal["ok", "note", "warning", "error"]
Result = TypeVar("Result")


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        level: "error" stops a run, "warning" deserves a look, "note" and "ok" inform.
        where: what was looked at: "teacher tokenizer", "data" ...
        what: what is there.
        exit_code: for an error, the exit code that the run would end with.
    """

    level: Level
    where: str
    what: str
    exit_code: int = 0


@dataclass
class Findings:
    """Findings in the order in which they were made."""

    items: list[Finding] = field(default_factory=list)

    def add(self, level: Level, where: str, what: str) -> None:
        """Note one finding that is no caught error."""
        self.items.append(Finding(level, where, what, 2 if level == "error" else 0))

    def attempt(self, where: str, check: Callable[[], Result]) -> Result | None:
        """Return what a check returns; an error that it raises becomes a finding, and None."""
        try:
            return check()
        except CrosstillError as error:
            self.items.append(Finding("error", where, str(error), error.exit_code))
            return None

    @property
    def exit_code(self) -> int:
        """0 without errors, 3 where all errors are in the data, 2 else."""
        codes = {item.exit_code for item in self.items if item.level == "error"}
        return 0 if not codes else 3 if codes == {3} else 2
