"""``interpret probe``: tables compared with plain forward passes; input that is refused; interrupted runs."""

import json
from contextlib import nullcontext

import pytest
import torch

import interpret
from interpret import storage
from interpret.anatomy import reporting_attention
from interpret.errors import RunError
from interpret.models.opening import load
from interpret.probing import neuron_runs, prompt_probes, prompt_runs
from interpret.probing.neuron_runs import NeuronPlan, write_neurons
from interpret.probing.prompt_probes import logits_probe
from interpret.probing.prompt_runs import run_probe
from interpret.probing.registry import Probe
from interpret.prompts.chat import wrap
from interpret.prompts.spelling import piece
from interpret.records import HeadView, LensReading, LogitShare, NeuronEffect
from interpret.storage import run_folder
from interpret.storage.run_folder import read_run
from reference.commands import json_file, run, saved_model
from reference.damage import OUT_OF_MEMORY
from reference.tiny import hooks_on

TEXT = "The Eiffel Tower is in"
PAIRS = [
    ("Anna's apples are red", "Anna's apples are blue"),
    ("I love eating pizza", "I love eating stones"),
    ("The Tower is in Paris", "The Tower is in Rome"),
    ("Sugar is sweet", "Sugar is salty and loud"),
    ("Water is wet", "Water is dry"),
]


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def folder(request, tmp_path_factory):
    return saved_model(tmp_path_factory.mktemp(request.param), request.param)


@pytest.fixture
def opened(folder):
    model, tokenizer = load(str(folder), device="cpu")
    hooks = hooks_on(model)
    yield model, tokenizer
    assert hooks_on(model) == hooks


@pytest.fixture
def examples(tmp_path):
    entries = [
        {"prompt": TEXT, "category": "raw", "raw": True, "target": "Paris", "foil": "Rome", "subject": "Tower"},
        {"prompt": "I love pizza", "category": "chat"},
    ]
    return json_file(tmp_path / "examples.json", {"examples": entries})


@pytest.fixture
def pairs(tmp_path):
    return json_file(tmp_path / "pairs.json", {"pairs": [{"true": true, "false": false} for true, false in PAIRS]})


def probe(kind, folder, output, *more):
    return run("probe", kind, "--model", folder, "--device", "cpu", "--output", output, *more)


def read_whole(model, ids):
    """One plain forward pass over a prompt."""
    with torch.no_grad(), reporting_attention(model):
        return model(torch.tensor([list(ids)]), output_hidden_states=True, output_attentions=True)


def texts_of(tokenizer):
    """Both prompts of ``examples`` as token ids."""
    chat = wrap(tokenizer, "I love pizza")
    return {
        "raw_1": tokenizer(TEXT).input_ids,
        "chat_1": tokenizer(chat.text, add_special_tokens=chat.add_special_tokens).input_ids,
    }


def first_token(tokenizer, words):
    return tokenizer(f"{TEXT} {words}").input_ids[len(tokenizer(TEXT).input_ids)]


# ------------------------------------------------------------------------------------------------------ the numbers


def test_the_lens_is_the_final_norm_and_unembedding_of_each_state(folder, opened, examples, tmp_path):
    model, tokenizer = opened
    assert probe("lens", folder, tmp_path / "run", "--examples", examples, "--tokens", "0,-1", "--top", "3") == 0
    rows = run_folder.read_table(tmp_path / "run", LensReading)
    texts, n_layers = texts_of(tokenizer), model.config.num_hidden_layers
    norm = model.model.norm if hasattr(model, "model") else model.transformer.ln_f
    assert {(row.name, row.token_idx, row.site, row.layer_idx) for row in rows} == {
        (name, position, *state)
        for name, ids in texts.items()
        for position in (0, len(ids) - 1)
        for state in [*(("resid_pre", layer) for layer in range(n_layers)), ("resid_post", n_layers - 1)]
    }
    for row in rows:
        output = read_whole(model, texts[row.name])
        after_last = row.site == "resid_post"
        states = output.hidden_states[row.layer_idx + after_last][0, row.token_idx]
        # The last of hidden_states has passed the final norm already.
        logits = model.lm_head(states if after_last else norm(states)).detach()
        assert row.logit == pytest.approx(logits[row.prediction_id].item(), abs=1e-4)
        assert row.probability == pytest.approx(logits.softmax(-1)[row.prediction_id].item(), rel=1e-3)
        # Logits that differ by rounding only may stand in either order.
        surely, perhaps = (int((logits > logits[row.prediction_id] + by).sum()) for by in (1e-5, -1e-5))
        assert surely < row.rank <= perhaps
        assert row.token == tokenizer.decode([texts[row.name][row.token_idx]])
        assert row.prediction == piece(tokenizer, row.prediction_id)


def test_the_lens_follows_target_and_foil_of_the_prompts_that_have_them(folder, opened, examples, tmp_path):
    _, tokenizer = opened
    assert probe("lens", folder, tmp_path / "run", "--examples", examples, "--top", "1") == 0
    rows = run_folder.read_table(tmp_path / "run", LensReading)
    followed = {(row.name, row.continuation, row.prediction_id) for row in rows if row.continuation}
    wanted = {(key, first_token(tokenizer, words)) for key, words in (("target", "Paris"), ("foil", "Rome"))}
    assert followed == {("raw_1", key, token) for key, token in wanted}
    assert all(row.rank == 1 for row in rows if not row.continuation)


def test_a_foil_that_begins_as_the_target_is_the_targets_token(folder, opened, tmp_path):
    entry = {"prompt": TEXT, "category": "raw", "raw": True, "target": "Paris", "foil": "Paris Rome"}
    path = json_file(tmp_path / "examples.json", {"examples": [entry]})
    assert probe("lens", folder, tmp_path / "run", "--examples", path, "--top", "0") == 0
    assert {row.continuation for row in run_folder.read_table(tmp_path / "run", LensReading)} == {"target"}


def test_the_shares_add_up_to_the_logits_of_answer_and_foil(folder, opened, examples, tmp_path):
    model, tokenizer = opened
    assert probe("logits", folder, tmp_path / "run", "--examples", examples) == 0
    rows = run_folder.read_table(tmp_path / "run", LogitShare)
    for name, ids in texts_of(tokenizer).items():
        own = [row for row in rows if row.name == name]
        logits = read_whole(model, ids).logits[0, -1]
        answer = first_token(tokenizer, "Paris") if name == "raw_1" else int(logits.argmax())
        assert {row.answer_id for row in own} == {answer}
        assert sum(row.share for row in own) == pytest.approx(logits[answer].item(), abs=1e-4)
        if name == "raw_1":
            foil = logits[first_token(tokenizer, "Rome")].item()
            assert sum(row.foil_share for row in own) == pytest.approx(foil, abs=1e-4)
        else:
            assert {(row.foil, row.foil_share) for row in own} == {("", None)}
        heads = {(row.layer_idx, row.head) for row in own if row.component == "head"}
        assert len(heads) == model.config.num_hidden_layers * model.config.num_attention_heads


def test_the_heads_attend_as_the_models_attentions_say(folder, opened, examples, tmp_path):
    model, tokenizer = opened
    asked = ("--examples", examples, "--tokens", "1,-1", "--top", "2")
    assert probe("heads", folder, tmp_path / "run", *asked) == 0
    rows = run_folder.read_table(tmp_path / "run", HeadView)
    induction = interpret.probing.induction_scores(model, n_tokens=31)  # a repeated sequence of 62 tokens fits into 64
    n_heads = model.config.num_hidden_layers * model.config.num_attention_heads
    assert len(rows) == 2 * 2 * n_heads
    for row in rows:
        ids = texts_of(tokenizer)[row.name]
        pattern = read_whole(model, ids).attentions[row.layer_idx][0, row.head, row.token_idx]
        assert row.probabilities == pytest.approx(pattern.topk(2).values.tolist(), abs=1e-5)
        assert row.probabilities == pytest.approx(pattern[row.attended_positions].tolist(), abs=1e-5)
        assert row.attended_tokens == [tokenizer.decode([ids[at]]) for at in row.attended_positions]
        assert row.induction_score == pytest.approx(induction[row.layer_idx, row.head].item())


def effects_of(rows):
    return {(row.layer_idx, row.neuron): row for row in rows}


def test_neuron_effects_are_those_of_one_scan_of_all_pairs(folder, opened, pairs, tmp_path, monkeypatch):
    model, tokenizer = opened
    monkeypatch.setattr(neuron_runs, "PAIRS_A_UNIT", 2)
    assert probe("neurons", folder, tmp_path / "run", "--pairs", pairs, "--token", "mean") == 0
    rows = run_folder.read_table(tmp_path / "run", NeuronEffect)
    layers = range(model.config.num_hidden_layers)
    wanted = effects_of(interpret.probing.KnowledgeProber(model, tokenizer).scan(PAIRS, layers, token="mean"))
    found = effects_of(rows)
    assert found.keys() == wanted.keys()
    for neuron, row in found.items():
        for key in ("true_mean", "false_mean", "hedges_g", "p_value", "q_value"):
            assert getattr(row, key) == pytest.approx(getattr(wanted[neuron], key), rel=1e-3, abs=1e-6), key
    assert [(row.p_value, -abs(row.hedges_g)) for row in rows] == sorted(
        (row.p_value, -abs(row.hedges_g)) for row in rows
    )
    assert not (tmp_path / "run" / "values").exists()


def test_facts_with_foils_serve_as_pairs(folder, opened, tmp_path, capsys):
    model, tokenizer = opened
    facts = [
        {"known_id": n, "subject": "Tower", "attribute": true, "foil": false, "prompt": f"The {word} Tower is in"}
        for n, (word, true, false) in enumerate([("Eiffel", "Paris", "Rome"), ("tall", "Pisa", "Oslo")])
    ]
    path = json_file(tmp_path / "facts.json", [*facts, {key: facts[0][key] for key in facts[0] if key != "foil"}])
    assert probe("neurons", folder, tmp_path / "run", "--facts", path, "--layers", "1") == 0
    assert "1 rows of" in capsys.readouterr().err
    texts = [("The Eiffel Tower is in Paris", "The Eiffel Tower is in Rome")]
    texts += [("The tall Tower is in Pisa", "The tall Tower is in Oslo")]
    wanted = effects_of(interpret.probing.KnowledgeProber(model, tokenizer).scan(texts, 1))
    found = effects_of(run_folder.read_table(tmp_path / "run", NeuronEffect))
    for side in ("true_mean", "false_mean"):
        assert {key: getattr(row, side) for key, row in found.items()} == pytest.approx(
            {key: getattr(row, side) for key, row in wanted.items()}, rel=1e-4, abs=1e-6
        )


def test_the_seed_says_which_permutations_are_drawn(folder, opened, pairs, tmp_path):
    drawn = ("--pairs", pairs, "--layers", "0", "--permutations", "20")
    found = {}
    for seed in (0, 3):
        assert probe("neurons", folder, tmp_path / f"run{seed}", *drawn, "--seed", seed) == 0
        found[seed] = effects_of(run_folder.read_table(tmp_path / f"run{seed}", NeuronEffect))
        scan = interpret.probing.KnowledgeProber(*opened).scan(PAIRS, 0, n_permutations=20, seed=seed)
        wanted = {key: row.p_value for key, row in effects_of(scan).items()}
        assert {key: row.p_value for key, row in found[seed].items()} == pytest.approx(wanted)
    assert found[0] != found[3]


# --------------------------------------------------------------------------------------------- runs that are stopped


@pytest.mark.parametrize("n_done", [1, 3])
def test_a_scan_that_is_stopped_goes_on_to_the_same_bytes(n_done, opened, tmp_path, monkeypatch):
    model, tokenizer = opened
    monkeypatch.setattr(neuron_runs, "PAIRS_A_UNIT", 2)
    plan = NeuronPlan(PAIRS, [0, 1])

    def go_on(folder, units):
        settings = {"identity": {"plan": 1}, "circumstances": {}, "units": plan.units}
        with storage.open_run(folder, NeuronEffect, **settings) as open_run:
            for _, _unit in zip(range(units), write_neurons(open_run, model, tokenizer, plan), strict=False):
                pass
        return (folder / "table.csv").read_bytes()

    whole = go_on(tmp_path / "whole", len(plan.units))
    go_on(tmp_path / "stopped", n_done)
    assert go_on(tmp_path / "stopped", len(plan.units)) == whole
    assert whole.count(b"\n") == 1 + 2 * interpret.probing.neurons.count_neurons(model, 0)


def test_a_prompt_that_is_done_is_not_done_again(opened, examples, tmp_path):
    model, tokenizer = opened
    probe = Probe("counted", "counts", LogitShare, lambda model, tokenizer: count)
    seen, read = [], logits_probe(model, tokenizer)

    def count(one):
        seen.append(one.name)
        if len(seen) == 2:
            raise KeyboardInterrupt
        return read(one)

    for raised in (pytest.raises(KeyboardInterrupt), nullcontext()):
        with raised:
            run_probe(model, tokenizer, probe, examples, tmp_path / "run")
    assert seen == ["raw_1", "chat_1", "chat_1"]
    assert {row.name for row in run_folder.read_table(tmp_path / "run", LogitShare)} == {"raw_1", "chat_1"}


def test_a_scan_whose_values_are_gone_says_so(opened, tmp_path, monkeypatch):
    model, tokenizer = opened
    monkeypatch.setattr(neuron_runs, "PAIRS_A_UNIT", 2)
    plan = NeuronPlan(PAIRS, [0])
    settings = {"identity": {"plan": 1}, "circumstances": {}, "units": plan.units}
    with storage.open_run(tmp_path / "run", NeuronEffect, **settings) as open_run:
        steps = write_neurons(open_run, model, tokenizer, plan)
        assert [next(steps) for _ in range(3)] == plan.units[:3]
        (tmp_path / "run" / "values" / "pairs_3.safetensors").unlink()
        with pytest.raises(RunError, match=r"pairs_3\.safetensors is missing"):
            next(steps)


@pytest.mark.parametrize("too_large", OUT_OF_MEMORY)
@pytest.mark.parametrize("refused", [[1], [2, 3], [0, 1, 2]])
def test_pairs_that_do_not_fit_in_memory_are_dropped_and_the_others_are_compared(
    folder, opened, pairs, tmp_path, capsys, monkeypatch, refused, too_large
):
    real = neuron_runs.neuron_values

    def refusing(model, tokenizer, texts, layers, **options):
        return too_large() if large & set(texts) else real(model, tokenizer, texts, layers, **options)

    large = {PAIRS[number][number % 2] for number in refused}
    monkeypatch.setattr(neuron_runs, "PAIRS_A_UNIT", 2)
    monkeypatch.setattr(neuron_runs, "neuron_values", refusing)
    assert probe("neurons", folder, tmp_path / "run", "--pairs", pairs, "--layers", "0") == 3
    found = read_run(tmp_path / "run")
    reason = (
        "not read: a text of this pair does not fit in memory: shorten it, use a smaller dtype, or use another device"
    )
    parts = [part for of_unit in found.dropped_parts.values() for part in of_unit]
    units = [unit for unit in ("pairs_1", "pairs_3") if {int(unit[-1]) - 1, int(unit[-1])} <= set(refused)]
    assert found.dropped == dict.fromkeys(units, reason)
    in_units = {number for unit in units for number in (int(unit[-1]) - 1, int(unit[-1]))}
    assert parts == [f"pair {number + 1}" for number in refused if number not in in_units]
    assert reason in capsys.readouterr().err.replace("\n", " ")
    kept = [pair for number, pair in enumerate(PAIRS) if number not in refused]
    wanted = effects_of(interpret.probing.KnowledgeProber(*opened).scan(kept, 0))
    own = effects_of(found.records())
    assert {key: row.true_mean for key, row in own.items()} == pytest.approx(
        {key: row.true_mean for key, row in wanted.items()}, rel=1e-4, abs=1e-6
    )


def test_a_scan_with_fewer_than_two_pairs_that_fit_has_no_effects(folder, pairs, tmp_path, monkeypatch):
    monkeypatch.setattr(neuron_runs, "neuron_values", OUT_OF_MEMORY[0])
    assert probe("neurons", folder, tmp_path / "run", "--pairs", pairs, "--layers", "0") == 3
    found = read_run(tmp_path / "run")
    assert found.dropped["effects"] == ("not read: fewer than two pairs fit in memory, so there is nothing to compare")
    assert found.records() == []


def test_prompts_that_were_probed_are_not_probed_again(folder, examples, tmp_path, capsys):
    asked = ("--examples", examples)
    assert probe("logits", folder, tmp_path / "run", *asked) == 0
    before = (tmp_path / "run" / "table.csv").read_bytes()
    capsys.readouterr()
    assert probe("logits", folder, tmp_path / "run", *asked) == 0
    assert "2 of 2 prompts are already done" in capsys.readouterr().err
    assert (tmp_path / "run" / "table.csv").read_bytes() == before
    assert probe("logits", folder, tmp_path / "run", *asked, "--chat-template", "say {prompt}") == 2
    assert "another run" in capsys.readouterr().err


# ----------------------------------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize("too_large", OUT_OF_MEMORY)
def test_a_prompt_that_does_not_fit_in_memory_is_dropped_with_its_reason(
    opened, examples, tmp_path, monkeypatch, too_large
):
    real = prompt_probes.activation_cache

    def refusing(model, tokenizer, prompts, names):
        if len(prompts[0]) > n_tokens:
            too_large()
        return real(model, tokenizer, prompts, names)

    n_tokens = len(opened[1](TEXT).input_ids)
    monkeypatch.setattr(prompt_probes, "activation_cache", refusing)
    found = prompt_runs.run_lens(*opened, examples, tmp_path / "run")
    (reason,) = found.dropped.values()
    assert reason.startswith("not probed: a prompt of ")
    assert reason.endswith(" tokens does not fit in memory: shorten it, use a smaller dtype, or use another device")
    assert {row.prompt for row in found.records()} == {TEXT}


def test_a_prompt_with_nothing_to_list_is_dropped_by_name(folder, examples, tmp_path, capsys):
    assert probe("lens", folder, tmp_path / "run", "--examples", examples, "--top", "0") == 3
    assert "chat_1: not probed: top is 0" in capsys.readouterr().err
    assert {row.name for row in run_folder.read_table(tmp_path / "run", LensReading)} == {"raw_1"}


def test_a_prompt_of_one_token_shows_nothing_of_heads(folder, tmp_path, capsys):
    entries = [{"prompt": text, "category": "raw", "raw": True} for text in ("e", TEXT)]
    path = json_file(tmp_path / "examples.json", {"examples": entries})
    assert probe("heads", folder, tmp_path / "run", "--examples", path) == 3
    assert "raw_1: not probed: 'e' is a single token, which can attend only to itself" in capsys.readouterr().err
    assert {row.name for row in run_folder.read_table(tmp_path / "run", HeadView)} == {"raw_2"}


@pytest.mark.parametrize(
    ("kind", "more", "says"),
    [
        ("lens", ("--tokens", "99"), "prompt raw_1: token 99 does not exist"),
        ("lens", ("--tokens", "lsat"), "did you mean 'last'?"),
    ],
)
def test_prompts_that_do_not_fit_are_refused_before_a_folder_is_made(
    kind, more, says, folder, examples, tmp_path, capsys
):
    assert probe(kind, folder, tmp_path / "run", "--examples", examples, *more) == 2
    assert says in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("document", "says"),
    [
        ({"pairs": []}, "has no pairs; expected"),
        ([], "has no pairs; expected"),
        ({"pairs": ["a"]}, "pairs[0]: expected an object"),
        ({"pairs": [{"true": "a b"}]}, 'pairs[0]: "false" is None; expected a text'),
        ({"pairs": [{"true": "a b", "false": " "}]}, "\"false\" is ' '; expected a text"),
        ({"pairs": [{"true": "a b", "false": "a b"}]}, "both texts are 'a b'"),
        ({"pairs": [{"true": "a b", "false": "a c"}]}, "has 1 pair: give at least 2"),
    ],
)
def test_a_wrong_file_of_pairs_is_refused(document, says, folder, tmp_path, capsys):
    path = json_file(tmp_path / "pairs.json", document)
    assert probe("neurons", folder, tmp_path / "run", "--pairs", path) == 2
    assert says in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (("--token", "lsat"), "did you mean 'last'?"),
        (("--token", "50"), "has no token 50"),
        (("--layers", "9"), "layer 9 does not exist"),
        (("--facts", "facts.json"), "give either --pairs with a file of true and false texts or --facts"),
    ],
)
def test_wrong_questions_about_neurons_are_refused(more, says, folder, pairs, tmp_path, capsys):
    assert probe("neurons", folder, tmp_path / "run", "--pairs", pairs, *more) == 2
    assert says in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_facts_without_foils_are_refused(folder, tmp_path, capsys):
    row = {"known_id": 1, "subject": "Tower", "attribute": "Paris", "prompt": TEXT}
    path = json_file(tmp_path / "facts.json", [row])
    assert probe("neurons", folder, tmp_path / "run", "--facts", path) == 2
    assert 'no fact has a "foil"' in capsys.readouterr().err


def test_the_manifest_tells_what_decided_the_numbers(folder, pairs, tmp_path):
    assert probe("neurons", folder, tmp_path / "run", "--pairs", pairs, "--layers", "0", "--seed", "3") == 0
    identity = json.loads((tmp_path / "run" / "manifest.json").read_text())["identity"]
    assert {"command", "model", "weights", "dtype", "texts_sha256", "layers", "token", "permutations"} <= set(identity)
    assert identity["seed"] == 3
