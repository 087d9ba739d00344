"""One JSON file per key, any number of writers: temporary file, fsync, rename, checksum."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import os
import secrets
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .cell import FORMAT
from .record import STATUSES, Record

MARK, DRAFT = "lacuna-store.json", ".tmp-"
KEYS_OF_A_THREAD = 256  # one key a call would spend longer on the pool's locks than on its file


class StoreError(ValueError):
    """The store cannot be read or is not ours; the message says what to do."""


@dataclass(frozen=True)
class Head:
    """The first line of a record's file: all that `status` and `plan` need."""

    key: str
    status: str
    reason: str
    sha256: str = ""  # of the record: two failures for the same reason are two


class Store:
    """A folder of records, artifacts and logs.

    Raises:
        StoreError: the folder holds something else, or another format.
    """

    def __init__(self, root: Path | str) -> None:
        self.root = Path(root)
        if (self.root / MARK).exists():
            self._check_format()
        elif self.root.is_file() or (self.root.is_dir() and self._is_foreign()):
            raise StoreError(f"{self.root} is not a lacuna store; set LACUNA_STORE or --store to a new or empty folder")

    def _is_foreign(self) -> bool:
        """Whether it holds anything that is not ours: another rank may be marking a new one at this moment."""
        others = any(not path.name.startswith(DRAFT) for path in self.root.iterdir())
        return others and not (self.root / MARK).exists()

    def _check_format(self) -> None:
        try:
            found = json.loads((self.root / MARK).read_text(encoding="utf-8")).get("format")
        except (OSError, ValueError, AttributeError) as error:
            raise StoreError(
                f"{self.root / MARK} cannot be read ({error}); restore it or take another folder"
            ) from error
        if found != FORMAT:
            raise StoreError(f"{self.root} has format {found}, this lacuna writes {FORMAT}; take another folder")

    def _path(self, folder: str, key: str, suffix: str) -> Path:
        return self.root / folder / key[:2] / f"{key}{suffix}"

    def begin(self) -> None:
        """Mark the folder as ours, before anything is written into it."""
        if not (self.root / MARK).exists():
            write_atomically(self.root / MARK, json.dumps({"format": FORMAT}).encode())

    def artifact(self, key: str) -> Path:
        """Where the artifact of a cell lies, or will."""
        return self._path("artifacts", key, ".safetensors")

    def unfinished(self, key: str) -> Path:
        """The lines that a cell under way writes, so that a killed one goes on where it was."""
        return self._path("unfinished", key, ".jsonl")

    def claim(self, key: str) -> Path:
        """The file whose lock the process that is at a cell holds."""
        return self._path("unfinished", key, ".claim")

    def start(self, key: str) -> None:
        """Say that a cell is begun: until it has ended well it has a file of lines, be it empty."""
        self.begin()
        self.unfinished(key).parent.mkdir(parents=True, exist_ok=True)
        self.unfinished(key).touch()

    def begun(self, key: str) -> float:
        """When a cell that has not ended well was begun, or last wrote a line (the file system's seconds); 0: never."""
        try:
            return self.unfinished(key).stat().st_mtime
        except FileNotFoundError:
            return 0.0

    def work(self, key: str) -> Path:
        """The folder in which a cell that was cut off leaves what its next try goes on from."""
        return self.root / "work" / key[:2] / key

    def memory(self) -> Path:
        """The file that remembers digests of models and data (a store that cannot be written remembers none)."""
        with contextlib.suppress(OSError):
            self.begin()
        return self.root / "digests.json"

    def logs(self) -> Path:
        """The folder of the jobs' logs."""
        return self.root / "logs"

    def put(self, record: Record) -> Path:
        """Write a record. One that is not ok never replaces one that is."""
        self.begin()
        path = self._path("records", record.key, ".json")
        head = self.head(record.key)
        if record.status == "ok" or head is None or head.status != "ok":
            write_atomically(path, _encode(record))
        return path

    def head(self, key: str) -> Head | None:
        """Status and reason of a key, or None; reads one line."""
        try:
            with self._path("records", key, ".json").open("rb") as file:
                return _head(file.readline(), key, self._path("records", key, ".json"))
        except FileNotFoundError:
            return None
        except OSError as error:
            raise StoreError(f"{self._path('records', key, '.json')} cannot be read: {error}") from error

    def heads(self, keys: Iterable[str]) -> dict[str, Head]:
        """Heads of those keys that have a record; threads hide a network file system's latency."""
        asked = list(keys)
        parts = [asked[start : start + KEYS_OF_A_THREAD] for start in range(0, len(asked), KEYS_OF_A_THREAD)]
        with ThreadPoolExecutor(8) as pool:
            found = itertools.chain.from_iterable(pool.map(lambda part: [self.head(key) for key in part], parts))
            return {head.key: head for head in found if head is not None}

    def get(self, key: str) -> Record:
        """Read a record and check it.

        Raises:
            KeyError: there is none.
            StoreError: the file is damaged.
        """
        path = self._path("records", key, ".json")
        if not path.exists():
            raise KeyError(key)
        return _decode(path)

    def records(self, keys: Iterable[str] | None = None) -> Iterator[Record]:
        """Every record, or those of the keys that have one."""
        if keys is None:
            keys = sorted(p.stem for p in (self.root / "records").glob("??/*.json"))
        yield from (self.get(k) for k in keys if self._path("records", k, ".json").exists())

    def put_artifact(self, key: str, data: bytes) -> dict[str, Any]:
        """Write an artifact; returns what the record says of it."""
        self.begin()
        write_atomically(self.artifact(key), data)
        return {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}

    def get_artifact(self, key: str) -> Path:
        """Path of an artifact whose checksum was compared with its record's.

        Raises:
            StoreError: its cell has not ended well, or the file is missing or damaged.
        """
        head = self.head(key)
        if head is None or head.status != "ok":
            raise StoreError(
                f"the cell {key} that makes the artifact is {head.status if head else 'missing'}; run it first"
            )
        record, path = self.get(key), self.artifact(key)
        if record.artifact is None:
            raise StoreError(f"the cell {key} (task {record.cell.task.name}) makes no artifact")
        said = record.artifact["sha256"]
        if not path.exists() or hashlib.sha256(path.read_bytes()).hexdigest() != said:
            raise StoreError(f"{path} is missing or damaged; delete its record and run the cell {key} again")
        return path


def write_atomically(path: Path, data: bytes) -> None:
    """All of data or nothing, whatever dies when: a reader never sees half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f"{DRAFT}{os.getpid()}-{secrets.token_hex(6)}")
    try:
        with draft.open("xb") as file:  # not tempfile: what it makes is for its owner alone, a store is for a group
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    except OSError as error:
        draft.unlink(missing_ok=True)
        if error.errno is None:  # a library's own, whose whole message would be lost
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error  # nobody knows the draft by its name
    except BaseException:
        draft.unlink(missing_ok=True)
        raise


def _encode(record: Record) -> bytes:
    body = json.dumps(record.to_json(), separators=(",", ":"), allow_nan=False)
    digest = hashlib.sha256(body.encode()).hexdigest()
    head = {"key": record.key, "status": record.status, "reason": record.reason, "sha256": digest}
    return f'{json.dumps(head)[:-1]},\n"record":{body}}}\n'.encode()


def _head(line: bytes, key: str, path: Path) -> Head:
    try:
        raw = json.loads(line.rstrip().removesuffix(b",") + b"}")
        head = Head(raw["key"], raw["status"], raw["reason"], raw.get("sha256", ""))
    except (ValueError, KeyError, TypeError) as error:
        raise StoreError(f"{path} is damaged; delete it to run the cell again") from error
    if head.key != key or head.status not in STATUSES:
        raise StoreError(f"{path} names {head.key!r} ({head.status}); delete it to run the cell again")
    return head


def _decode(path: Path) -> Record:
    text = path.read_text(encoding="utf-8")
    try:
        said = json.loads(text)["sha256"]
        body = text[text.index('\n"record":') + len('\n"record":') : -2]
        if hashlib.sha256(body.encode()).hexdigest() != said:
            raise ValueError("checksum differs")  # noqa: TRY301 - joins the other ways to be damaged
        return Record.from_json(json.loads(body))
    except (ValueError, KeyError, TypeError) as error:
        raise StoreError(f"{path} is damaged ({error}); delete it to run the cell again") from error
