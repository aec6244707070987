import re
from difflib import get_close_matches
from pathlib import Path

import pytest
import yaml
from hypothesis import assume, given
from hypothesis import strategies as st

from interpret.cli.options import WorkerOptions
from interpret.errors import InputError
from interpret.tracing.config import KEYS, OF_WORKERS, TraceConfig, load_config
from interpret.tracing.inputs import TraceSettings
from interpret.tracing.knowledge_tracing import check_module_names
from interpret.tracing.mediators import MEDIATORS, UNIT_MEDIATORS
from interpret.workers import Workers
from reference.tiny import tiny_model

EXAMPLE = Path(__file__).parents[2] / "examples" / "trace.yaml"
LAYER = "model.layers.[LAYER_NUM]"
# The keys and values of Knowledge-Tracing's own configuration file.
KNOWLEDGE_TRACING = {
    "model": {"pth": "some/llama-3b", "name": "llama-3b"},
    "generation_args": {
        "max_generate_length": 1,
        "do_sample": False,
        "output_scores": True,
        "return_dict_in_generate": True,
    },
    "hook_layer": {
        "clean_save": [LAYER, f"{LAYER}.self_attn", f"{LAYER}.mlp"],
        "corrupt": "model.embed_tokens",
        "corrupted_save": [f"{LAYER}.self_attn", f"{LAYER}.mlp"],
        "clean_replace": LAYER,
        "attn_sever": f"{LAYER}.self_attn",
        "mlp_sever": f"{LAYER}.mlp",
    },
    "result_pth": {"base_pth": "./results/"},
}


def written(folder: Path, document: object) -> Path:
    path = folder / "trace.yaml"
    path.write_text(document if isinstance(document, str) else yaml.safe_dump(document), encoding="utf-8")
    return path


def with_hooks(**changes):
    """Return Knowledge-Tracing's configuration with changes in ``hook_layer``; None removes a key."""
    hooks = {key: value for key, value in (KNOWLEDGE_TRACING["hook_layer"] | changes).items() if value is not None}
    return KNOWLEDGE_TRACING | {"hook_layer": hooks}


def test_a_knowledge_tracing_file_is_read_unchanged(tmp_path):
    config = load_config(written(tmp_path, KNOWLEDGE_TRACING))
    check_module_names(tiny_model("llama"), config.hook_layer)
    assert (config.model, config.name, config.output) == ("some/llama-3b", "llama-3b", "results/llama-3b")
    assert config.mediators == ("hidden", "attn_severed", "mlp_severed")
    assert config.settings == TraceSettings(noise=0.1)
    assert (config.rule, config.buckets, config.method) == ("first_token", "kt", "exact")
    assert config.data == "data/known_1000.json"


def test_our_own_keys_override_the_defaults_of_knowledge_tracing(tmp_path):
    ours = {"noise": "s2", "rule": "words", "buckets": "rome", "mediators": ["mlp_window"], "output": "there"}
    config = load_config(written(tmp_path, KNOWLEDGE_TRACING | ours))
    assert (config.settings.noise, config.rule, config.buckets) == ("s2", "words", "rome")
    assert (config.mediators, config.output) == (("mlp_window",), "there")


@pytest.mark.parametrize(
    ("hooks", "mediators"),
    [
        ({"attn_sever": None}, ("hidden", "mlp_severed")),
        ({"mlp_sever": None}, ("hidden", "attn_severed")),
        ({"attn_sever": None, "mlp_sever": None, "clean_save": None}, ("hidden",)),
    ],
)
def test_named_modules_are_severed(tmp_path, hooks, mediators):
    assert load_config(written(tmp_path, with_hooks(**hooks))).mediators == mediators


def test_every_key_of_our_own_is_read(tmp_path):
    settings = {
        "noise": "u0.5",
        "samples": 3,
        "seed": 7,
        "replace": True,
        "window": 4,
        "answer_tokens": "whole",
        "metric": "logit",
        "memory": 9,
    }
    settings["chat_template"] = "model"
    rest = {
        "data": "facts.json",
        "output": "there",
        "mediators": list(MEDIATORS),
        "method": "approximate",
        "rule": "first_token",
        "buckets": "kt",
        "dtype": "bfloat16",
        "device": "cpu",
    }
    assert set(settings) | set(rest) == set(KEYS) - set(KNOWLEDGE_TRACING) - set(OF_WORKERS)
    config = load_config(written(tmp_path, {"model": {"pth": "a/b"}} | settings | rest))
    expected = rest | {"mediators": tuple(MEDIATORS)}
    assert config == TraceConfig(model="a/b", name="b", settings=TraceSettings(**settings), **expected)


def test_a_list_of_metrics_is_read(tmp_path):
    config = load_config(written(tmp_path, {"metric": ["probability", "rank"]}))
    assert config == TraceConfig(metrics=("probability", "rank"))


@pytest.mark.parametrize("document", ["{}", "model:\nnoise:\n", "model: {name: }"])
def test_all_keys_may_be_left_out_or_empty(tmp_path, document):
    assert load_config(written(tmp_path, document)) == TraceConfig()


def test_the_shipped_configuration_names_shipped_facts():
    config = load_config(EXAMPLE)
    assert (EXAMPLE.parents[1] / config.data).is_file()
    assert config.model == "demo"


CHOICE = "Allowed: "
HOOK_KEYS = "clean_save, corrupt, corrupted_save, clean_replace, attn_sever, mlp_sever"


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ({"sampels": 3}, f"unknown key 'sampels'; did you mean 'samples'? {CHOICE}{', '.join(KEYS)}"),
        ({3: 3}, f"unknown key 3; {CHOICE}{', '.join(KEYS)}"),
        ({"model": {"path": "x"}}, f"unknown key of model 'path'; did you mean 'pth'? {CHOICE}pth, name"),
        (
            with_hooks(mpl_sever="x"),
            f"unknown key of hook_layer 'mpl_sever'; did you mean 'mlp_sever'? {CHOICE}{HOOK_KEYS}",
        ),
        (
            with_hooks(clean_replace=None),
            "hook_layer.clean_replace is missing; give the layer, as in model.layers.[LAYER_NUM]",
        ),
        (with_hooks(corrupt=3), "hook_layer.corrupt is 3; expected a non-empty string"),
        (with_hooks(clean_save="lm_head"), "hook_layer.clean_save is 'lm_head'; expected a non-empty list of strings"),
        (with_hooks(clean_save=["lm_head", 1]), "hook_layer.clean_save[1] is 1; expected a non-empty string"),
        ({"model": "demo"}, "model is 'demo'; expected keys and values: pth, name"),
        ({"model": {"pth": 3}}, "model.pth is 3; expected a non-empty string"),
        ({"result_pth": {"base_pth": ""}}, "result_pth.base_pth is ''; expected a non-empty string"),
        (
            {"generation_args": {"do_sample": True}},
            "generation_args.do_sample is true; tracing reads the greedy answer, not a sampled token: give false",
        ),
        (
            {"generation_args": {"max_generate_length": 5}},
            "generation_args.max_generate_length is 5; tracing reads the token after the prompt: give 1, "
            "and answer_tokens: whole to read all tokens of an answer",
        ),
        (
            {"generation_args": {"output_scores": "yes"}},
            "generation_args.output_scores is 'yes'; expected true or false",
        ),
        ({"samples": "10"}, "samples is '10'; expected an integer of at least 1"),
        ({"samples": True}, "samples is True; expected an integer of at least 1"),
        ({"window": 0}, "window is 0; expected an integer of at least 1"),
        ({"seed": -1}, "seed is -1; expected an integer of at least 0"),
        ({"memory": 1.5}, "memory is 1.5; expected an integer of at least 1"),
        ({"replace": 1}, "replace is 1; expected true or false"),
        ({"noise": True}, "noise is True; give a specification such as s3, or a number"),
        (
            {"noise": "3s"},
            "noise '3s' is not understood; give 's3' (3 standard deviations of the embeddings), 0.1, 'u0.5', 'm' or "
            "'t3'",
        ),
        ({"mediators": "hidden"}, "mediators is 'hidden'; expected a non-empty list of strings"),
        ({"mediators": []}, "mediators is []; expected a non-empty list of strings"),
        (
            {"mediators": ["hidden", "mlp_sever"]},
            f"unknown mediator 'mlp_sever'; did you mean 'mlp_severed'? {CHOICE}"
            f"{', '.join([*MEDIATORS, *UNIT_MEDIATORS])}",
        ),
        ({"answer_tokens": "frist"}, f"unknown answer_tokens 'frist'; did you mean 'first'? {CHOICE}first, whole"),
        ({"metric": []}, "metric is []; expected a non-empty list of strings"),
        ({"metric": ["rank", "rank"]}, "the metric rank is given twice; give each metric once"),
        (
            {"metric": ["rank", "logits"]},
            f"unknown metric 'logits'; did you mean 'logit'? {CHOICE}probability, log_probability, logit, "
            "logit_difference, rank",
        ),
        ({"dtype": "flaot16"}, f"unknown dtype 'flaot16'; did you mean 'float16'? {CHOICE}float32, float16, bfloat16"),
        ({"buckets": ["kt"]}, f"unknown buckets ['kt']; {CHOICE}rome, kt"),
        ({"data": 3}, "data is 3; expected a non-empty string"),
        ([1], f"the file is [1]; expected keys and values: {', '.join(KEYS)}"),
        ("", f"the file is None; expected keys and values: {', '.join(KEYS)}"),
        ("seed: 1\nseed: 2\n", "key 'seed' occurs twice; keep one"),
        ("model: {pth: a, pth: b}", "key 'pth' occurs twice; keep one"),
    ],
)
def test_a_wrong_key_or_value_is_an_error_that_names_it(tmp_path, document, message):
    path = written(tmp_path, document)
    with pytest.raises(InputError, match=f"^{re.escape(f'{path}: {message}')}$"):
        load_config(path)


@given(key=st.sampled_from(KEYS), at=st.integers(0, 20), letter=st.sampled_from("aexz_"))
def test_a_misspelt_key_is_an_error_that_names_the_right_one(tmp_path_factory, key, at, letter):
    misspelt = key[:at] + letter + key[at:]
    assume(get_close_matches(misspelt, KEYS, n=1) == [key])
    path = written(tmp_path_factory.mktemp("configs"), f"{misspelt}: 1\n")
    with pytest.raises(InputError, match=re.escape(f"unknown key {misspelt!r}; did you mean {key!r}?")):
        load_config(path)


def test_a_file_that_is_not_yaml_is_an_error(tmp_path):
    path = written(tmp_path, "model: {pth")
    with pytest.raises(InputError, match=f"^{re.escape(str(path))} is not YAML: while parsing a flow mapping "):
        load_config(path)


def test_a_missing_file_is_an_error_that_names_an_example(tmp_path):
    path = tmp_path / "none.yaml"
    message = f"{path} does not exist; give a YAML file like examples/trace.yaml"
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        load_config(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("seed: !!int abc", ": line 1: 'abc' is not an integer"),
        ("samples: 3\nseed: !!bool x", ": line 2: 'x' is not true or false"),
        ("samples: 2024-01-31", ": samples is '2024-01-31'; expected an integer of at least 1"),
        ("model: {pth: &a [*a]}", ": line 1: an alias repeats the value that contains it; write the value out"),
        ("samples: " + "9" * 20, f": samples is {'9' * 20}; expected an integer of at most 9223372036854775807"),
        ('output: "a\\0b"', ": output is 'a\\x00b'; expected a text without NUL and halves of surrogate pairs"),
        ("noise: s" + "9" * 400, ": noise 's9999999"),
        ("mediators: " + "[" * 20_000, ": line 1 is nested deeper than 20 levels; expected a few"),
        ("\n".join(f"k{n}: 1" for n in range(20_000)), ": line 2501: more than 5000 keys and values"),
    ],
    ids=lambda text: text[:12],
)  # fmt: skip
def test_a_value_that_yaml_cannot_hold_is_named(tmp_path, text, message):
    path = written(tmp_path, text)
    with pytest.raises(InputError, match=f"^{re.escape(str(path) + message)}"):
        load_config(path)


def test_a_date_is_the_text_that_was_written(tmp_path):
    assert load_config(written(tmp_path, "output: 2024-01-31")).output == "2024-01-31"


def test_an_alias_is_read(tmp_path):
    text = "model: {pth: &name demo}\noutput: *name\n"
    assert load_config(written(tmp_path, "\ufeff" + text)).output == "demo"


def test_keys_about_workers_are_those_of_the_options(tmp_path):
    keys = {"workers": 8, "cluster": "auto", "gpus_per_worker": 0.5, "start_timeout": 60}
    path = tmp_path / "trace.yaml"
    path.write_text(yaml.safe_dump(keys))
    found = load_config(path).workers
    assert found == keys
    assert WorkerOptions().asked(**found) == Workers(8, "auto", 0.5, 60.0)
    assert WorkerOptions(workers=2, cluster="a:1").asked(**found) == Workers(2, "a:1", 0.5, 60.0)
    assert WorkerOptions().asked().in_process


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("workers: 0", "workers is 0; expected an integer of at least 1"),
        ("workers: many", "workers is 'many'; expected an integer of at least 1"),
        ("gpus_per_worker: half", "gpus_per_worker is 'half'; expected a number"),
        ("cluster: 3", "cluster is 3; expected a non-empty string"),
    ],
)
def test_wrong_values_about_workers_are_refused(line, message, tmp_path):
    (tmp_path / "trace.yaml").write_text(line)
    with pytest.raises(InputError, match=message):
        load_config(tmp_path / "trace.yaml")
