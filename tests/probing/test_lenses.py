"""The lenses side by side: the identity patchscope against plain hooks, and their comparison with the model."""

import csv
import json

import numpy as np
import pytest
import torch

import interpret
from interpret.activations.cache import activation_cache
from interpret.errors import InputError
from interpret.models.opening import load
from interpret.probing._logit_lens import identity_lens, logit_lens
from interpret.probing.lens_averages import lens_averages
from interpret.probing.lenses import IDENTITY_PROMPT, divergence
from interpret.probing.prompt_runs import run_lens
from interpret.records import LensAverage, LensReading
from interpret.storage.run_folder import read_table
from reference.commands import json_file, run
from reference.kinds import FURTHER, FURTHER_WHOLE, KINDS, L
from reference.overlay import reference_forward
from reference.self_interpretation import speaking_model
from reference.toy_tokenizers import byte_level

TEXTS = ["The Eiffel Tower is in", "I love pizza"]


@pytest.mark.parametrize("kind", [*KINDS, *FURTHER, *FURTHER_WHOLE])
def test_the_identity_lens_is_a_whole_pass_over_the_prompt_with_the_state_at_its_end(kind):
    model, tokenizer = speaking_model(kind), byte_level()
    ids = tokenizer(IDENTITY_PROMPT).input_ids
    cache = activation_cache(model, tokenizer, TEXTS[:1])
    own = cache["logits"][0, -1].log_softmax(-1)
    for row in identity_lens(model, cache, tokenizer, [7], top=0).itertuples():
        if row.layer == L:
            assert (row.agrees, row.kl) == (True, 0)
            continue
        state = cache["resid_pre.0" if row.layer == 0 else f"resid_post.{row.layer - 1}"][0, -1]
        with torch.no_grad():
            expected = reference_forward(model, ids, {row.layer: ([-1], state[None, None])}).logits[-1].log_softmax(-1)
        assert row.probability == pytest.approx(expected[7].exp().item(), abs=5e-6)
        assert row.kl == pytest.approx((own.exp() * (own - expected)).sum().item(), rel=1e-3, abs=1e-4)
        assert row.agrees == (expected.argmax() == own.argmax())


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_the_identity_lens_says_what_generation_with_the_state_inserted_says(kind):
    model, tokenizer = speaking_model(kind), byte_level()
    interpret.attach(model)
    ids = torch.tensor([tokenizer(IDENTITY_PROMPT).input_ids])
    cache = activation_cache(model, tokenizer, TEXTS[:1])
    frame = identity_lens(model, cache, tokenizer, top=1)
    for row in frame[frame.layer < L].itertuples():
        state = cache["resid_pre.0" if row.layer == 0 else f"resid_post.{row.layer - 1}"][0, -1]
        said = interpret.generate_interpret(
            model, ids, insert_info=[{row.layer: ([-1], state[None, None])}], max_new_tokens=1, do_sample=False
        )
        assert row.token_id == said[0, -1]


def test_kl_is_that_of_torch_and_counts_no_token_that_both_exclude():
    log_p, log_q = torch.randn(2, 3, 7).log_softmax(-1)
    expected = torch.distributions.kl_divergence(
        torch.distributions.Categorical(logits=log_p), torch.distributions.Categorical(logits=log_q)
    )
    torch.testing.assert_close(divergence(log_p.exp(), log_p, log_q), expected)
    without = torch.tensor([[0.0, 1.0, -torch.inf]]).log_softmax(-1)
    assert divergence(without.exp(), without, without).item() == 0
    assert divergence(log_p.exp()[0], log_p[0], torch.full((7,), torch.nan)).isnan()


@pytest.fixture
def examples(tmp_path):
    entries = [{"prompt": text, "category": "a", "raw": True, "target": "Paris"} for text in (*TEXTS, "Sugar is")]
    return json_file(tmp_path / "examples.json", {"examples": entries})


@pytest.fixture
def lens_folder(model_folder, tmp_path):
    """A lens trained for ``model_folder``."""
    (tmp_path / "text.txt").write_text("Rome is in Italy. " * 20, encoding="utf-8")
    settings = {"steps": 2, "length": 8, "progress": False}
    model, tokenizer = load(str(model_folder), device="cpu")
    interpret.probing.train_lens(model, tokenizer, tmp_path / "text.txt", tmp_path / "lens", **settings)
    return tmp_path / "lens"


def probe_lens(model_folder, output, *more):
    return run("probe", "lens", "--model", model_folder, "--device", "cpu", "--output", output, *more)


def test_one_command_reads_prompts_by_all_lenses(model_folder, lens_folder, examples, tmp_path, capsys):
    words = ["--lens", "logit", "--lens", "tuned", "--lens", "identity", "--tuned", lens_folder, "--limit", "2"]
    assert probe_lens(model_folder, tmp_path / "run", "--examples", examples, *words, "--top", "1") == 0
    out = capsys.readouterr().out
    assert "Identity lens of prompt a_1 at token" in out
    assert "over 2 prompts" in out
    rows = read_table(tmp_path / "run", LensReading)
    assert {(row.name, row.lens) for row in rows} == {
        (name, lens) for name in ("a_1", "a_2") for lens in ("logit", "tuned", "identity")
    }
    assert all(row.agrees and row.kl == 0 for row in rows if row.site == "resid_post")
    model, tokenizer = load(str(model_folder), device="cpu")
    maps = interpret.probing.load_tuned_lens(model, lens_folder)
    cache = activation_cache(model, tokenizer, TEXTS[:1])
    of_calls = {
        "logit": logit_lens(model, cache, top=1),
        "tuned": interpret.probing.tuned_lens(model, cache, maps, top=1),
        "identity": identity_lens(model, cache, tokenizer, top=1),
    }
    for lens, frame in of_calls.items():
        own = [row for row in rows if (row.name, row.lens, row.rank) == ("a_1", lens, 1)]
        assert [row.prediction_id for row in own] == frame.token_id.tolist()
        assert [row.kl for row in own] == pytest.approx(frame.kl.tolist())
    # The maps are part of what a run depends on.
    assert "tuned_sha256" in json.loads((tmp_path / "run" / "manifest.json").read_text())["identity"]
    assert run("figures", tmp_path / "run", "-o", tmp_path / "figures") == 0
    with (tmp_path / "figures" / "averages.csv").open(encoding="utf-8") as file:
        assert [row["lens"] for row in csv.DictReader(file)][:: L + 1] == ["logit", "tuned", "identity"]


def reading(name, layer, agrees, kl, *, token=0, lens="logit", after=False):
    return LensReading(
        name=name, prompt="", token_idx=token, token="", site="resid_post" if after else "resid_pre", layer_idx=layer,
        rank=1, prediction_id=0, prediction="", logit=0.0, probability=0.0, continuation="", lens=lens, agrees=agrees,
        kl=kl,
    )  # fmt: skip


def test_averages_are_over_prompts_and_count_each_state_once():
    rows = [
        *[reading("a", 0, True, 1.0)] * 3,  # three predictions of one state
        reading("a", 0, False, 3.0, token=1),
        reading("b", 0, False, 6.0),
        reading("c", 0, None, float("nan")),
        reading("a", 0, True, 0.0, after=True),
    ]
    first, last = lens_averages(rows)
    assert (first.agreement, first.kl, first.n) == (0.25, 4.0, 3)
    expected = interpret.stats.average([2.0, 6.0, np.nan])
    assert (first.kl_low, first.kl_high) == (expected.low, expected.high)
    assert (last.site, last.agreement, last.n) == ("resid_post", 1.0, 1)
    assert isinstance(first, LensAverage)
    with pytest.raises(InputError, match="there are no readings to average"):
        lens_averages([])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--lens", "tunned"], "unknown lens 'tunned'; did you mean 'tuned'?"),
        (["--lens", "tuned"], "give --lens tuned with --tuned and the folder of 'interpret probe train-lens'"),
        (["--tuned", "runs/lens"], "give --lens tuned with --tuned and the folder of 'interpret probe train-lens'"),
        (["--lens", "logit", "--lens", "logit"], "lenses are logit, logit; name one or several, each once"),
        (["--lens", "tuned", "--tuned", "nowhere"], "nowhere is not a run folder: it has no manifest.json"),
    ],
)
def test_lenses_that_cannot_be_read_are_one_message(words, message, model_folder, examples, tmp_path, capsys):
    assert probe_lens(model_folder, tmp_path / "run", "--examples", examples, *words) == 2
    assert message in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "run").exists()


def test_a_run_of_another_kind_is_no_tuned_lens(model_folder, examples, tmp_path):
    model, tokenizer = load(str(model_folder), device="cpu")
    run_lens(model, tokenizer, examples, tmp_path / "logit", progress=False)
    with pytest.raises(InputError, match="logit is not a tuned lens: it is a run of 'interpret probe lens'"):
        interpret.probing.load_tuned_lens(model, tmp_path / "logit")
