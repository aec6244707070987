"""From a clone: an editable installation in an empty environment, then the patch in the same one."""

import csv
import re
import shlex

import pytest

from reference.environments import make_environment

pytestmark = [pytest.mark.packaging, pytest.mark.xdist_group("clone")]

PROMPTS = '{"examples": [{"prompt": "Anna likes apples", "category": "mine"}]}'
GENERATE = """
import sys, torch, transformers
model = transformers.AutoModelForCausalLM.from_pretrained(sys.argv[1])
ids = torch.tensor([[5, 6, 7]])
edit = [{1: ([1], torch.ones(1, 1, model.config.hidden_size))}]
print(model.generate_interpret(ids, insert_info=edit, max_new_tokens=3, do_sample=False).shape[1])
"""


@pytest.fixture(scope="module")
def environment(clone, tmp_path_factory):
    made = make_environment(tmp_path_factory.mktemp("environment"))
    made.install("--editable", clone)
    return made


def test_the_patch_names_the_line_after_which_it_works(environment, clone, tmp_path, model_folder):
    assert environment.versions()["transformers"].startswith("5.")
    done = environment.run("python", clone / "install_patch.py", cwd=clone)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    (line,) = re.findall(r"`(pip install -e .*?)`", done.stderr)
    words = shlex.split(line)
    assert words == ["pip", "install", "-e", ".[patch]"]

    environment.install(*words[2:-1], f"{clone}[patch]")
    assert environment.versions()["transformers"] == "4.34.0"
    assert "No broken requirements found" in environment.pip("check")
    done = environment.run("python", clone / "install_patch.py", cwd=clone)
    assert done.returncode == 0, done.stderr
    done = environment.run("python", "-W", "ignore", "-c", GENERATE, model_folder, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, "6\n"), done.stderr

    (tmp_path / "mine.json").write_text(PROMPTS)
    quick = ["--layers", "1", "--tokens", "last", "--new-tokens", "3", "--device", "cpu", "--model", model_folder]
    script = [clone / "scripts" / "get_interpretations_from_examples.py", "--examples", "mine.json", *quick]
    done = environment.run("python", *script, "--output", "run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    with (tmp_path / "run" / "table.csv").open(encoding="utf-8", newline="") as file:
        assert len(list(csv.DictReader(file))) == 2
