"""Tuned lenses: the gradient against autograd on the stock model, training, its resumption, and what is refused."""

import json
import re
from dataclasses import replace

import pytest
import torch
from torch.nn.functional import kl_div

from interpret.activations.cache import activation_cache
from interpret.anatomy import anatomy_of
from interpret.errors import InputError, RunError, UnsupportedModelError
from interpret.models.opening import load
from interpret.probing import lens_runs, lens_training
from interpret.probing._logit_lens import logit_lens, tuned_lens
from interpret.probing.lens_maps import LENS_FILE, TunedLens, load_tuned_lens, untrained
from interpret.probing.lens_runs import train_lens
from interpret.probing.lens_training import LensSettings, LensTrainer, batch_at, divergences, pieces_of
from interpret.records import LensTraining
from interpret.storage import provenance
from interpret.storage.run_folder import read_table
from reference.commands import run, saved_model
from reference.kinds import FURTHER, FURTHER_WHOLE, KINDS, D, L
from reference.overlay import reference_forward
from reference.tiny import hooks_on, tiny_model
from reference.toy_tokenizers import byte_level

ROWS = [[5, 6, 7, 8, 9], [20, 30, 40, 50, 60]]
EVERY_KIND = pytest.mark.parametrize("kind", [*KINDS, *FURTHER, *FURTHER_WHOLE])
TEXT = "The Eiffel Tower is in Paris. Rome is in Italy, and Cairo is in Egypt. " * 20
TINY = {"steps": 25, "batch_size": 2, "length": 8, "lr": 1e-2, "progress": False}


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text(TEXT, encoding="utf-8")
    return path


@EVERY_KIND
def test_maps_that_are_zero_give_the_logit_lens_bit_for_bit(kind):
    model = tiny_model(kind)
    cache = activation_cache(model, None, ROWS)
    expected = logit_lens(model, cache, [3, 7], positions=None)
    found = tuned_lens(model, cache, untrained(L, anatomy_of(model).width), [3, 7], positions=None)
    assert found.to_frame().equals(expected.to_frame())


def test_a_map_is_applied_before_the_final_norm(llama):
    cache = activation_cache(llama, None, ROWS)
    maps = TunedLens(0.1 * torch.randn(L, D, D), 0.1 * torch.randn(L, D))
    for row in tuned_lens(llama, cache, maps, [7], top=0, positions=[1]).itertuples():
        state = cache["resid_pre.0" if row.layer == 0 else f"resid_post.{row.layer - 1}"][row.prompt, 1]
        if row.layer < L:
            state = state + maps.weight[row.layer] @ state + maps.bias[row.layer]
        with torch.no_grad():
            log_q = llama.lm_head(llama.model.norm(state)).log_softmax(-1)
        own = cache["logits"][row.prompt, 1].log_softmax(-1)
        assert row.probability == pytest.approx(log_q.exp()[7].item(), abs=1e-6)
        assert row.kl == pytest.approx(kl_div(log_q, own, reduction="sum", log_target=True).item(), abs=1e-5)
        assert row.agrees == (log_q.argmax() == own.argmax())


@EVERY_KIND
def test_kl_and_its_gradient_are_those_of_autograd_on_the_stock_model(kind):
    model = tiny_model(kind)
    width, trainer = anatomy_of(model).width, LensTrainer(model, LensSettings(), 5)
    weight, bias = (0.1 * torch.randn(L, width, width)).requires_grad_(), (0.1 * torch.randn(L, width)).requires_grad_()
    kl, at_weight, at_bias = divergences(trainer.end, TunedLens(weight, bias), trainer.streams(ROWS))
    expected = torch.zeros(L)
    for row in ROWS:
        own = reference_forward(model, row, None)
        for layer in range(L):
            h = own.layer_inputs[layer].detach()
            logits = _unembedded_by_the_model(model, h + h @ weight[layer].T + bias[layer])
            p, log_q = own.logits.detach().log_softmax(-1), logits.log_softmax(-1)
            expected[layer] = expected[layer] + kl_div(log_q, p, reduction="sum", log_target=True) / 10
    torch.testing.assert_close(kl, expected.detach(), rtol=1e-4, atol=1e-5)
    for found, one in zip((at_weight, at_bias), torch.autograd.grad(expected.sum(), (weight, bias)), strict=True):
        torch.testing.assert_close(found, one, rtol=1e-3, atol=1e-5)
    assert hooks_on(model) == 0
    assert all(parameter.grad is None for parameter in model.parameters())


def test_the_gradient_is_the_same_if_logits_are_computed_piece_by_piece(llama, monkeypatch):
    trainer = LensTrainer(llama, LensSettings(), 5)
    maps, streams = TunedLens(0.1 * torch.randn(L, D, D), 0.1 * torch.randn(L, D)), trainer.streams(ROWS)
    whole = divergences(trainer.end, maps, streams)
    monkeypatch.setattr(lens_training, "MOST_LOGITS", 3 * trainer.end.n_logits)  # 3 of the 10 tokens
    for one, other in zip(divergences(trainer.end, maps, streams), whole, strict=True):
        torch.testing.assert_close(one, other)


def _unembedded_by_the_model(model, states):
    """Return the model's own logits if the last layer's output were these states, [T, D], by a hook on the layer."""

    def instead(module, args, output):
        return (states[None], *output[1:]) if isinstance(output, tuple) else states[None]

    handle = anatomy_of(model).layers[-1].register_forward_hook(instead)
    try:
        return model(torch.tensor([[5] * len(states)]), use_cache=False).logits[0]
    finally:
        handle.remove()


def _kl_on(model, tokenizer, lens, text):
    """Return the mean KL of each layer on a text, [L]."""
    settings = LensSettings(batch_size=1, length=8)
    pieces = pieces_of(tokenizer, text, "text", settings)
    trainer = LensTrainer(model, settings, len(pieces[0]))
    return divergences(trainer.end, lens, trainer.streams(pieces))[0]


def test_training_lowers_the_kl_on_a_text_it_has_not_seen(model_folder, text, tmp_path):
    model, tokenizer = load(str(model_folder), device="cpu")
    train_lens(model, tokenizer, text, tmp_path / "lens", **TINY | {"steps": 40})
    lens = load_tuned_lens(model, tmp_path / "lens")
    unseen = "Paris is in Egypt, and the Eiffel Tower is in Rome. " * 3
    before, after = (_kl_on(model, tokenizer, one, unseen) for one in (untrained(L, D), lens))
    assert (after < 0.9 * before).all()


def test_a_resumed_training_gives_the_same_bytes(model_folder, text, tmp_path, monkeypatch):
    model, tokenizer = load(str(model_folder), device="cpu")
    train_lens(model, tokenizer, text, tmp_path / "whole", **TINY)
    update, done = LensTrainer.update, []

    def killed(self, batch):
        if len(done) == 17:
            raise KeyboardInterrupt
        done.append(1)
        return update(self, batch)

    monkeypatch.setattr(LensTrainer, "update", killed)
    with pytest.raises(KeyboardInterrupt):
        train_lens(model, tokenizer, text, tmp_path / "resumed", **TINY)
    monkeypatch.undo()
    with pytest.raises(InputError, match="the training is not finished; the same command resumes it"):
        load_tuned_lens(model, tmp_path / "resumed")
    train_lens(model, tokenizer, text, tmp_path / "resumed", **TINY)
    for name in (LENS_FILE, "table.csv"):
        assert (tmp_path / "resumed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert not (tmp_path / "resumed" / lens_runs.CHECKPOINTS).exists()


def test_a_kill_between_a_checkpoint_and_its_unit_loses_only_the_unit(model_folder, text, tmp_path, monkeypatch):
    model, tokenizer = load(str(model_folder), device="cpu")
    train_lens(model, tokenizer, text, tmp_path / "whole", **TINY)
    write = lens_runs.Run.write

    def killed(self, unit, records, **more):
        if unit == "step_20":
            raise KeyboardInterrupt
        write(self, unit, records, **more)

    monkeypatch.setattr(lens_runs.Run, "write", killed)
    with pytest.raises(KeyboardInterrupt):
        train_lens(model, tokenizer, text, tmp_path / "resumed", **TINY)
    monkeypatch.undo()
    train_lens(model, tokenizer, text, tmp_path / "resumed", **TINY)
    assert (tmp_path / "resumed" / LENS_FILE).read_bytes() == (tmp_path / "whole" / LENS_FILE).read_bytes()


def test_the_table_has_the_loss_of_each_layer_over_the_steps(model_folder, text, tmp_path, capsys):
    options = ["--steps", "12", "--batch-size", "2", "--length", "8", "--model", model_folder, "--device", "cpu"]
    assert run("probe", "train-lens", "--text", text, "--output", tmp_path / "lens", *options) == 0
    assert f"--lens tuned --tuned {tmp_path / 'lens'}" in capsys.readouterr().out.replace("\n", "")
    rows = read_table(tmp_path / "lens", LensTraining)
    assert [(row.step, row.layer_idx) for row in rows] == [(step, layer) for step in (10, 12) for layer in range(L)]
    identity = json.loads((tmp_path / "lens" / "manifest.json").read_text())["identity"]
    assert identity["text_sha256"] == provenance.file_sha256(text)
    assert identity["transformers"] == provenance.versions()["transformers"]
    assert (identity["n_layers"], identity["length"], identity["lr"]) == (L, 8, 1e-3)


def test_every_piece_is_read_once_before_one_is_read_again():
    pieces, settings = [[n] for n in range(7)], LensSettings(batch_size=2)
    batches = [batch_at(pieces, step, settings) for step in range(6)]
    for epoch in (batches[:3], batches[3:]):
        assert len({piece[0] for batch in epoch for piece in batch}) == 6
    assert batches[:3] != batches[3:]
    assert batches != [batch_at(pieces, step, replace(settings, seed=1)) for step in range(6)]


# ------------------------------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (" \n", "is empty; give a text to train the lens on"),
        ("Rome", "has 4 tokens, fewer than a batch of 2 pieces of 8 tokens; give a longer text, or a smaller batch"),
    ],
)
def test_a_text_that_is_too_short_is_one_message(words, message, model_folder, tmp_path, capsys):
    (tmp_path / "text.txt").write_text(words)
    options = ["--batch-size", "2", "--length", "8", "--model", model_folder, "--device", "cpu"]
    assert run("probe", "train-lens", "--text", tmp_path / "text.txt", "--output", tmp_path / "lens", *options) == 2
    assert message in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "lens").exists()


def test_numbers_that_are_not_above_0_are_refused(llama, text, tmp_path):
    with pytest.raises(InputError, match="^lr is 0; give a number above 0$"):
        train_lens(llama, byte_level(), text, tmp_path / "lens", lr=0)


def test_a_loss_that_is_not_finite_ends_the_training(llama, monkeypatch):
    trainer = LensTrainer(llama, LensSettings(), 5)
    streams = trainer.streams(ROWS)
    streams[2][3, 4] = torch.inf
    monkeypatch.setattr(trainer, "streams", lambda batch: streams)
    with pytest.raises(
        InputError, match="^the loss of layer 2 is not finite at step 1; lower the learning rate 0.001, or"
    ):
        trainer.update(ROWS)


@pytest.fixture(scope="module")
def lens_folder(model_folder, tmp_path_factory):
    """A lens trained for ``model_folder``."""
    folder = tmp_path_factory.mktemp("trained")
    (folder / "text.txt").write_text(TEXT, encoding="utf-8")
    train_lens(*load(str(model_folder), device="cpu"), folder / "text.txt", folder / "lens", **TINY | {"steps": 1})
    return folder / "lens"


def test_a_lens_of_another_model_layer_count_or_release_is_refused(lens_folder, model_folder, tmp_path, monkeypatch):
    other, _ = load(str(saved_model(tmp_path / "other", "gpt2")), device="cpu")
    with pytest.raises(InputError, match="is a lens of another model: weights is sha256 .*Train one for this model"):
        load_tuned_lens(other, lens_folder)
    model, _ = load(str(model_folder), device="cpu")
    del model.base_model.layers[-1]
    with pytest.raises(InputError, match="is a lens of a model with 4 layers; this model has 3. Train one"):
        load_tuned_lens(model, lens_folder)
    half, _ = load(str(model_folder), device="cpu", dtype="bfloat16")
    with pytest.raises(InputError, match="is a lens of another model: dtype is float32, of this model bfloat16"):
        load_tuned_lens(half, lens_folder)
    monkeypatch.setattr(provenance, "versions", lambda: {"transformers": "9.9.9"})
    model, _ = load(str(model_folder), device="cpu")
    with pytest.raises(InputError, match=r"was trained with transformers \d.*, and this is 9.9.9, whose states may"):
        load_tuned_lens(model, lens_folder)


def test_maps_that_do_not_fit_a_model_are_refused(llama):
    cache = activation_cache(llama, None, ROWS)
    message = f"this model has {L} layers of width {D}"
    with pytest.raises(InputError, match=message):
        tuned_lens(llama, cache, untrained(L, D + 1))
    with pytest.raises(InputError, match=message):
        tuned_lens(llama, cache, untrained(L + 1, D))


def test_a_family_whose_head_cannot_be_run_apart_is_refused_by_name(llama, text, tmp_path):
    head = llama.lm_head.register_forward_hook(lambda module, args, output: output + torch.arange(97.0))
    llama.register_forward_hook(lambda module, args, output: output.__setitem__("logits", output.logits * 2) or output)
    try:
        with pytest.raises(UnsupportedModelError, match="LlamaForCausalLM"):
            train_lens(llama, byte_level(), text, tmp_path / "lens", progress=False)
    finally:
        head.remove()
        llama._forward_hooks.clear()


def test_a_damaged_lens_is_refused(lens_folder, model_folder, tmp_path):
    model, _ = load(str(model_folder), device="cpu")
    copy = tmp_path / "copy"
    copy.mkdir()
    (copy / "manifest.json").write_bytes((lens_folder / "manifest.json").read_bytes())
    (copy / LENS_FILE).write_bytes((lens_folder / LENS_FILE).read_bytes()[:-7])
    with pytest.raises(RunError, match=re.escape(f"{copy / LENS_FILE} cannot be read: ")):
        load_tuned_lens(model, copy)
