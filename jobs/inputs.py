"""The models and data files that a sweep names: where they lie, and the digests that pin them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from ..harness.rows import check_row, first_row, hub_revision
from ..results import plugins
from ..results.cell import Spec
from ..results.digest import tree_digest
from ..results.fields import Data, near, problem
from ..results.store import Store

# what makes a model: weights, configuration, tokenizer (a README beside them changes no result)
MODEL_FILES = ("*.json", "*.safetensors", "*.model", "*.txt")
DATA_SUFFIX = ".jsonl.gz"


class Inputs:
    """Finds and pins inputs; each is hashed once.

    `beside` is the folder that relative paths start from; `data` is another one, for data that is not there.
    """

    def __init__(self, beside: Path, store: Store, data: Path | None = None) -> None:
        self.beside, self.store, self.folder = beside.resolve(), store, None if data is None else data.resolve()
        self.known: dict[tuple[Data, str], tuple[str, str]] = {}

    def data(self, wanted: Data, name: str) -> tuple[str, str]:
        """The argument's final text (a name of the package or the Hub, or an absolute path) and the content's digest.

        Raises:
            ValueError: no such file, or its first row lacks one of the fields.
        """
        revision = hub_revision(name)
        if revision is not None:
            return name, revision[:16]
        if (wanted, name) not in self.known:
            folder = wanted.folder
            path = plugins.ROOT / folder / f"{name}{DATA_SUFFIX}"
            inside = "/" not in name and _is_file(path)
            path = path if inside else self._elsewhere(folder, name)
            _check_first_row(path, wanted)
            self.known[wanted, name] = (name if inside else str(path.resolve()), self._digest([path]))
        return self.known[wanted, name]

    def _elsewhere(self, folder: str, name: str) -> Path:
        path = next((p / name for p in (self.beside, self.folder) if p and _is_file(p / name)), None)
        if path is not None:
            return path
        there = (p.name.removesuffix(DATA_SUFFIX) for p in (plugins.ROOT / folder).glob(f"*{DATA_SUFFIX}"))
        looked = f" here or in {self.folder}" if self.folder else ""
        raise ValueError(f"no data {name!r} in {folder}, nor a file of that path{looked}: {near(name, there)}")

    def zoo(self, name: str) -> Spec:
        """A model that has a file in the zoo.

        Raises:
            ValueError: no such model, or its file is wrong.
        """
        file = plugins.source("models", name)
        try:
            raw = yaml.safe_load(file.read_text(encoding="utf-8"))
            known = {k: v for k, v in raw.items() if k != "text"} if isinstance(raw, dict) else {}
            return self.model(known, name, file.parent)
        except (ValueError, yaml.YAMLError) as error:
            raise ValueError(f"{file}: {error}") from error

    def model(self, given: Mapping[str, Any], name: str = "", beside: Path | None = None) -> Spec:
        """A model by {path}, by {repo, revision}, or by the shape of one that is to be trained, {new}.

        Raises:
            ValueError: a key is unknown or missing, or there is no model.
        """
        kinds = {"path": str, "repo": str, "revision": str, "trust_remote_code": bool, "new": str}
        for key, value in given.items():
            if key not in kinds:
                raise ValueError(f"unknown key {key!r} of a model: {near(key, kinds)}")
            if wrong := problem(value, kinds[key]):
                raise ValueError(f"model.{key} is {value!r}, expected {wrong}")
        if "new" in given:
            return self._shape(given, name)
        args = {"trust_remote_code": True} if given.get("trust_remote_code") else {}
        if ("path" in given) == ("repo" in given) or ("revision" in given) != ("repo" in given):
            raise ValueError(
                "a model is {path: FOLDER}, {new: SHAPE} or {repo: ORG/NAME, revision: COMMIT}: without it a repo moves"
            )
        if "repo" in given:
            return _pinned(given["repo"], given["revision"], name, args)
        return self._folder((beside or self.beside) / given["path"], name, args)

    def _shape(self, given: Mapping[str, Any], name: str) -> Spec:
        if len(given) > 1:
            raise ValueError("a model that is to be trained takes its shape alone: {new: SHAPE}")
        shapes = plugins.ROOT / "models" / "shapes"
        inside = "/" not in given["new"] and _is_file(shapes / f"{given['new']}.json")
        path = shapes / f"{given['new']}.json" if inside else self.beside / given["new"]
        if path.suffix != ".json" or not _is_file(path):
            there = (p.stem for p in shapes.glob("*.json"))
            raise ValueError(f"no shape {given['new']!r} in models/shapes, nor a .json: {near(given['new'], there)}")
        return Spec(name or f"new-{path.stem}", digest=self._digest([path]), source=str(path.resolve()))

    def _folder(self, path: Path, name: str, args: Mapping[str, Any]) -> Spec:
        if not _is_file(path / "config.json"):
            raise ValueError(f"{path} holds no model: expected a folder with config.json and *.safetensors")
        path = path.resolve()
        files = [file for pattern in MODEL_FILES for file in path.glob(pattern)]
        if not any(file.suffix == ".safetensors" for file in files):
            raise ValueError(f"{path} holds no weights: expected *.safetensors (other formats can run code)")
        return Spec(name or path.name, args=args, digest=self._digest(files), source=str(path))

    def _digest(self, files: list[Path]) -> str:
        digest: str = tree_digest(files, self.store.memory())
        return digest


def _pinned(repo: str, revision: str, name: str, args: Mapping[str, Any]) -> Spec:
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repo):
        raise ValueError(f"model.repo is {repo!r}, expected ORG/NAME")
    if not re.fullmatch(r"[0-9a-f]{40}", revision):
        raise ValueError(f"model.revision is {revision!r}, expected a commit's 40 hexadecimal digits: a branch moves")
    return Spec(name or repo, args=args, digest=revision, source=f"{repo}@{revision}")


def _check_first_row(path: Path, wanted: Data) -> None:
    """What can be known at once need not wait for a job: whether there is a row, and what it has."""
    if ".tar" in path.suffixes:
        return  # of texts, to train on: it has no rows
    row = first_row(path)
    if row is None:
        raise ValueError(f"{path} has no rows")
    if not wanted.others or not all(name in row for name in wanted.others):
        check_row(str(path), 1, row, wanted.fields)


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # a name that no file can have
        return False
