"""Folders and files that look like a model but do not hold one."""

import json
import re

import pytest

from interpret.errors import ModelError
from interpret.models.opening import load

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a21\nsize 268435456\n"


@pytest.mark.parametrize(
    ("config", "named"),
    [
        ({"base_model_name_or_path": "org/base"}, " of 'org/base'"),
        ({}, ""),
        ([], ""),
        ({"base_model_name_or_path": 3}, ""),
    ],
)
def test_an_adapter_is_called_an_adapter(tmp_path, config, named):
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    message = f"{str(tmp_path)!r} is a PEFT adapter{named}, not a model: open the model, apply the adapter with "
    with pytest.raises(ModelError, match=f"^{re.escape(message)}"):
        load(tmp_path)


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin", "tokenizer.json", "config.json"])
def test_a_pointer_in_a_folder_is_named(tmp_path, name):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / name).write_text(POINTER)
    message = f"{str(tmp_path / name)!r} is a Git LFS pointer, which stands for a file that was not downloaded: run "
    with pytest.raises(ModelError, match=f"^{re.escape(message)}'git lfs pull' in its folder$"):
        load(tmp_path)


def test_a_pointer_in_place_of_a_gguf_file_is_named(tmp_path):
    file = tmp_path / "model.gguf"
    file.write_text(POINTER)
    with pytest.raises(ModelError, match=f"^{re.escape(repr(str(file)))} is a Git LFS pointer"):
        load(file)
