"""A model is what its files say, or it is not loaded."""

import json

import pytest
import torch
from conftest_models import make_model
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from lacuna.models.load import load_model
from lacuna.results.cell import Spec


@pytest.fixture
def folder(tmp_path):
    """A tiny model as files."""
    make_model().save_pretrained(tmp_path)
    Tokenizer(WordLevel({"a": 0}, "a")).save(str(tmp_path / "tokenizer.json"))
    said = {"tokenizer_class": "PreTrainedTokenizerFast"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(said), encoding="utf-8")
    return tmp_path


def loaded(folder):
    return load_model(Spec("tiny", source=str(folder)), "float32", "cpu")[0]


def test_the_weights_are_the_files(folder):
    """Every number would be of some other model."""
    model = loaded(folder)
    files = load_file(folder / "model.safetensors")
    assert len(files) > 10
    assert all(torch.equal(part, files[name]) for name, part in model.state_dict().items() if name in files)


@pytest.mark.parametrize("change", ["gone", "smaller"])
def test_a_tensor_that_the_files_lack_is_not_made_up(folder, change):
    """Random numbers would fill it, and a broken download would be measured as if it were the model."""
    files, name = load_file(folder / "model.safetensors"), "model.layers.0.mlp.up_proj.weight"
    whole = files.pop(name)
    if change == "smaller":
        files[name] = whole[:-1].clone()
    save_file(files, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=rf"of model tiny lack 1 of its tensors, {name}"):
        loaded(folder)


def test_a_damaged_file_is_named(folder):
    """A sentence of safetensors' own would not say which of ten models is meant."""
    (folder / "model.safetensors").write_bytes(b"\xff" * 1000)
    with pytest.raises(ValueError, match=f"model tiny cannot be loaded from {folder}: Error while"):
        loaded(folder)
