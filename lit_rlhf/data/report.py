"""What became of every row: the report that is printed, logged and written beside a run.

The rule is ``accepted + rejected == read``, per source; :meth:`RowReport.check` asserts it.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from lit_rlhf.data.records import Located, Reason, RowError
from lit_rlhf.jsonl import write_rows

if TYPE_CHECKING:
    from rich.table import Table

OnBadRow = Literal["skip", "error"]
_SHOWN, _WIDTH = 5, 160


@dataclass(frozen=True)
class Rejected:
    """One refused row and why."""

    source: str
    line: int
    reason: Reason
    detail: str
    value: Any = None

    def __str__(self) -> str:
        return f"{self.source}:{self.line}: {self.reason.value}" + (f" ({self.detail})" if self.detail else "")


@dataclass
class SourceCount:
    """Counts of one source; ``dropped_turns`` are old turns cut from ``shortened`` rows that were too long."""

    format: str = ""
    read: int = 0
    accepted: int = 0
    shortened: int = 0
    dropped_turns: int = 0


@dataclass
class RowReport:
    """Counts per source and every refused row."""

    sources: dict[str, SourceCount] = field(default_factory=dict)
    rejected: list[Rejected] = field(default_factory=list)

    @property
    def read(self) -> int:
        """Rows read from all sources (blank lines are not rows)."""
        return sum(s.read for s in self.sources.values())

    @property
    def accepted(self) -> int:
        """Rows that became records and, once encoded, fit."""
        return sum(s.accepted for s in self.sources.values())

    @property
    def dropped_turns(self) -> int:
        """Old turns cut from dialogues that were too long."""
        return sum(s.dropped_turns for s in self.sources.values())

    @property
    def reasons(self) -> Counter[str]:
        """How many rows were refused for each reason."""
        return Counter(r.reason.value for r in self.rejected)

    def source(self, name: str) -> SourceCount:
        """The counts of a source, made on first use."""
        return self.sources.setdefault(name, SourceCount())

    def reject(self, source: str, line: int, error: RowError, value: Any = None) -> None:
        """Note a row that did not become a record."""
        self.rejected.append(Rejected(source, line, error.reason, error.detail, value))

    def withdraw(self, record: Located, error: RowError) -> None:
        """Note a record that turned out unusable when it was encoded."""
        self.source(record.source).accepted -= 1
        self.reject(record.source, record.line, error, dict(record.raw))

    def shorten(self, record: Located, dropped_turns: int) -> None:
        """Note old turns cut from a record."""
        if dropped_turns:
            self.source(record.source).shortened += 1
            self.source(record.source).dropped_turns += dropped_turns

    def check(self) -> None:
        """Assert that every row is accounted for."""
        assert self.accepted + len(self.rejected) == self.read, "a row went missing"

    def enforce(self, on_bad_row: OnBadRow) -> None:
        """Refuse to go on when a row was refused and the policy is "error", or when none is left.

        Raises:
            ValueError: With the first refused rows by file, line and reason.
        """
        self.check()
        some = "; ".join(f"{r!s:.{_WIDTH}}" for r in self.rejected[:_SHOWN])
        more = f"; and {len(self.rejected) - _SHOWN} more" if len(self.rejected) > _SHOWN else ""
        if self.rejected and on_bad_row == "error":
            raise ValueError(f"{len(self.rejected)} of {self.read} rows cannot be used: {some}{more}.")
        if not self.accepted:
            where = ", ".join(self.sources) or "the data"
            raise ValueError(f"No usable row in {where}" + (f": {some}{more}." if some else ": no rows."))

    def summary(self) -> str:
        """One line: counts, formats, reasons, dropped turns."""
        formats = ", ".join(sorted({s.format for s in self.sources.values() if s.format}))
        text = f"{self.accepted} of {self.read} rows accepted (format: {formats or 'none'})"
        if self.rejected:
            text += "; refused: " + ", ".join(f"{n} {reason}" for reason, n in self.reasons.most_common())
        if self.dropped_turns:
            shortened = sum(s.shortened for s in self.sources.values())
            text += f"; {shortened} dialogues shortened by {self.dropped_turns} old turns"
        return text

    def table(self) -> Table:
        """One line a source, then its reasons, for the terminal."""
        from rich.table import Table

        table = Table("source", "format", "rows", "accepted", "refused", "shortened (turns)", "reasons")
        for name, count in self.sources.items():
            why = Counter(r.reason.value for r in self.rejected if r.source == name)
            reasons = "\n".join(f"{n} {reason}" for reason, n in why.most_common())
            shortened = f"{count.shortened} ({count.dropped_turns})"
            numbers = (str(count.read), str(count.accepted), str(count.read - count.accepted))
            table.add_row(name, count.format, *numbers, shortened, reasons)
        return table

    def write_rejects(self, path: str | Path) -> Path | None:
        """Write the refused rows as JSONL (source, line, reason, detail, row); nothing when there are none.

        Returns:
            The file written, or None.
        """
        if not self.rejected:
            return None
        out = Path(path)
        rows = (
            {"source": r.source, "line": r.line, "reason": r.reason.value, "detail": r.detail, "row": r.value}
            for r in self.rejected
        )
        write_rows(out, rows, default=str)
        return out
