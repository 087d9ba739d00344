"""A small package root of its own for each test: the sweep's tests depend on no method, task or model of the suite."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from lacuna.results import plugins

PLUGINS = {
    "models/methods/full.py": "class Full:\n    '''Everything.'''\n    version = 1\n",
    "models/methods/topk.py": (
        "class TopK:\n    '''The largest.'''\n    version: ClassVar[int] = 2\n"
        "    k: Annotated[int | float, Share('the context')] = 0.25\n"
        "    sharp: Annotated[float, Within(0, open_low=True)] = 1.0\n"
    ),
    "models/methods/loki.py": (
        "class Loki:\n    '''Low rank.'''\n"
        "    k: Annotated[int | float, Share('the context')]\n"
        "    d: Annotated[int | float, Share('the head')] = 0.25\n"
        "    layers: tuple[int, ...] | None = None\n"
        "    basis: Annotated[Mapping, Needs('pca')] = field(default_factory=dict)\n"
    ),
    "models/methods/streaming_llm.py": "class S:\n    '''Sinks.'''\n    sinks: Annotated[int, Within(0)] = 4\n",
    "harness/tasks/pca.py": (
        "class Pca:\n    '''Basis.'''\n    corpus: Annotated[str, Data('harness/data')] = 'calibration'\n"
        "    rotary: Literal['pre', 'post'] = 'post'\n"
    ),
    "harness/tasks/needle.py": "class Needle:\n    '''Find.'''\n    length: Annotated[int, Within(1)] = 512\n    cases: int = 8\n",
    "harness/tasks/perplexity.py": (
        "class P:\n    '''Text.'''\n    window: Annotated[int, Within(2)] = 1024\n"
        "    corpus: Annotated[str, Data('harness/data')] = 'prose'\n"
    ),
    "models/zoo/pocket.yaml": "path: pocket\ntext: small\n",
    "models/zoo/pocket/config.json": "{}",
    "models/zoo/pocket/model.safetensors": "weights",
}


@pytest.fixture
def root(tmp_path, monkeypatch):
    """Point the registry at a folder with a few plug-ins, and stand in an empty folder."""
    folder = tmp_path / "root"
    for name, text in PLUGINS.items():
        write(folder / name, text)
    for name in ("calibration", "prose"):
        path = folder / f"harness/data/{name}.jsonl.gz"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(gzip.compress(b'{"text": "%s"}' % name.encode(), mtime=0))
    monkeypatch.setattr(plugins, "ROOT", folder)
    plugins.describe.cache_clear()
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    yield folder
    plugins.describe.cache_clear()


def write(path: Path, text: str) -> Path:
    """Write a file and the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path
