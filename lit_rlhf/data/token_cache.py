"""Token ids kept on the disk: made by one process, read by all, found again at the next start.

An entry is a folder named by a hash of all that decides what is in it: the files (path, size, time of change), the
tokenizer, the template and other options, and the code that reads and encodes. It is written under another name and
renamed when all of it is on the disk, so that what a kill or a full disk leaves is never read.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lit_rlhf.data.arrow_rows import ArrowRows, ArrowWriter
from lit_rlhf.data.encoding import Column
from lit_rlhf.data.records import Reason
from lit_rlhf.data.report import Rejected, RowReport, SourceCount

TOKENS, RECORDS, REJECTED, META = "tokens.arrow", "records.npz", "rejected.jsonl", "meta.json"


@dataclass
class Tokenized:
    """Everything that became of some data.

    Attributes:
        rows: Rows of token ids, in the order of the data: a list, or those of a file.
        counts: Rows of each record that was read, ``(R,)`` int32: none where it was refused when it was encoded.
        groups: 64 bits of each record's group, ``(R,)`` uint64.
        report: What became of every row of the data.
    """

    rows: Sequence[Any]
    counts: Any
    groups: Any
    report: RowReport


def default_root() -> Path:
    """The folder of entries: beside those of `datasets` (``HF_DATASETS_CACHE``, ``HF_HOME``)."""
    from huggingface_hub.constants import HF_HOME

    named = os.environ.get("HF_DATASETS_CACHE")
    return Path(named).expanduser() / "lit_rlhf" if named else Path(HF_HOME) / "datasets" / "lit_rlhf"


def entry_name(tokenizer: Any, what: Mapping[str, Any]) -> str:
    """The name of the entry of some data, tokenized so: a hash.

    Args:
        tokenizer: Its vocabulary, rules and chat template count, not where it came from.
        what: Everything else that decides what is in it, as JSON's values.
    """
    parts = {"what": what, "tokenizer": _identity(tokenizer), "code": _code()}
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:32]


def _identity(tokenizer: Any) -> dict[str, Any]:
    """What decides the ids that a tokenizer gives."""
    import tokenizers
    import transformers

    backend = getattr(tokenizer, "backend_tokenizer", None)
    rules = (
        backend.to_str()
        if backend is not None
        else json.dumps([tokenizer.get_vocab(), tokenizer.init_kwargs], default=str)
    )
    added = {i: (str(token), token.special) for i, token in tokenizer.added_tokens_decoder.items()}
    return {
        "class": f"{type(tokenizer).__module__}.{type(tokenizer).__qualname__}",
        "rules": hashlib.sha256(rules.encode()).hexdigest(),
        "special": [tokenizer.special_tokens_map, tokenizer.bos_token_id, tokenizer.eos_token_id, added],
        "chat_template": getattr(tokenizer, "chat_template", None),
        "versions": [transformers.__version__, tokenizers.__version__],
    }


def _code() -> str:
    """A hash of the code that reads and encodes: what it made before a change is made anew."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


class Entry:
    """One folder of the cache, there or still to be made.

    Args:
        root: The folder of entries.
        name: See :func:`entry_name`.
        columns: Of its rows.
    """

    def __init__(self, root: Path, name: str, columns: Mapping[str, Column]) -> None:
        self.folder = root / name
        self.columns = columns

    def load(self) -> Tokenized | None:
        """What it holds; None where it is not there, or not whole."""
        try:
            meta = json.loads((self.folder / META).read_text(encoding="utf-8"))
            if any((self.folder / name).stat().st_size != size for name, size in meta["sizes"].items()):
                return None
            with np.load(self.folder / RECORDS) as records:
                counts, groups = records["counts"], records["groups"]
            rows = ArrowRows(self.folder / TOKENS, self.columns)
            return Tokenized(rows, counts, groups, self._report(meta["sources"]))
        except (OSError, ValueError, KeyError):
            return None

    def _report(self, sources: Mapping[str, Mapping[str, Any]]) -> RowReport:
        report = RowReport({name: SourceCount(**count) for name, count in sources.items()})
        with (self.folder / REJECTED).open(encoding="utf-8") as lines:
            for line in lines:
                row = json.loads(line)
                report.rejected.append(Rejected(**{**row, "reason": Reason(row["reason"])}))
        return report

    def lock(self) -> Any:
        """The lock of whoever makes it; a context manager that waits.

        Raises:
            OSError: The folder of entries cannot be written.
        """
        from filelock import FileLock

        self.folder.parent.mkdir(parents=True, exist_ok=True)
        return FileLock(f"{self.folder}.lock")

    def begin(self) -> EntryWriter:
        """Start to make it, with the lock held: what others left half made goes.

        Raises:
            OSError: It cannot be written.
        """
        for left in self.folder.parent.glob(f"{self.folder.name}.*.tmp"):
            shutil.rmtree(left, ignore_errors=True)
        return EntryWriter(self)


class EntryWriter:
    """Writes an entry beside its place, and puts it there when it is whole."""

    def __init__(self, entry: Entry) -> None:
        self._entry = entry
        self._folder = entry.folder.with_name(f"{entry.folder.name}.{os.getpid()}.tmp")
        self._folder.mkdir()
        self._tokens = ArrowWriter(self._folder / TOKENS, entry.columns)

    def write(self, batch: bytes) -> None:
        """Packed rows; see :func:`lit_rlhf.data.arrow_rows.packed`.

        Raises:
            OSError: No room is left.
        """
        self._tokens.write(batch)

    def finish(self, counts: Any, groups: Any, report: RowReport) -> None:
        """Write the rest, and rename.

        Raises:
            OSError: No room is left.
        """
        self._tokens.close()
        np.savez(self._folder / RECORDS, counts=counts, groups=groups)
        with (self._folder / REJECTED).open("w", encoding="utf-8") as file:
            for row in report.rejected:
                file.write(json.dumps({**vars(row), "reason": row.reason.value}, default=str) + "\n")
        sizes = {name: (self._folder / name).stat().st_size for name in (TOKENS, RECORDS, REJECTED)}
        meta = {"sizes": sizes, "sources": {name: asdict(count) for name, count in report.sources.items()}}
        (self._folder / META).write_text(json.dumps(meta, indent=1), encoding="utf-8")
        shutil.rmtree(self._entry.folder, ignore_errors=True)  # one that was not whole
        self._folder.rename(self._entry.folder)

    def give_up(self) -> None:
        """Leave nothing behind."""
        shutil.rmtree(self._folder, ignore_errors=True)
