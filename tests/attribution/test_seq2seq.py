"""Encoder-decoder models: texts become tokens as for their tokenizers, and scores equal plain autograd."""

import copy
import re
from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from transformers import T5Config, T5ForConditionalGeneration

from interpret.anatomy import check_logits, language_codes, reporting_attention
from interpret.attribution._attribute import attribute
from interpret.attribution.seq2seq import write_targets
from interpret.attribution.seq2seq_texts import Seq2SeqTexts, seq2seq_texts_of
from interpret.errors import InputError, UnsupportedModelError
from reference.toy_seq2seq import KINDS, Toy, toy_seq2seq

TEXTS = ["I love eating pizza.", "The Eiffel Tower"]
TARGETS = ["hello cheese", "capital of Japan"]


FEW = ("m2m100", "marian", "t5")
"""Kinds for what does not depend on the modules and the tokenizer: with both languages, a flag, and none."""


@pytest.fixture(params=KINDS)
def toy(request) -> Iterator[Toy]:
    yield from unchanged(toy_seq2seq(request.param))


@pytest.fixture(params=FEW)
def one_of_few(request) -> Iterator[Toy]:
    yield from unchanged(toy_seq2seq(request.param))


def unchanged(toy) -> Iterator[Toy]:
    """Yield a toy, and check that it was left as it was."""
    weights = {name: value.clone() for name, value in toy.model.state_dict().items()}
    yield toy
    assert all(torch.equal(value, weights[name]) for name, value in toy.model.state_dict().items())
    assert all(parameter.grad is None for parameter in toy.model.parameters())
    assert not toy.model.training


def run(toy, prompts=TEXTS, targets=TARGETS, **options):
    return attribute(toy.model, toy.tokenizer, prompts, targets, **toy.languages, **options)


def source_ids(toy, text):
    """Tokenize a source as in the documentation of transformers."""
    if toy.source_language is not None:
        toy.tokenizer.src_lang = toy.source_language
        return toy.tokenizer(text).input_ids
    return toy.tokenizer(text if toy.target_language is None else f">>{toy.target_language}<< {text}").input_ids


def begin(toy):
    return toy.tokenizer.convert_tokens_to_ids(list(toy.begin))


def plain_steps(toy, text, target):
    """Source tokens, decoder tokens so far, and the next token, at each step."""
    written = ["<s>"] if toy.kind == "bart" else []  # which BART is trained to write, unless it is forced to
    ids = begin(toy) + toy.tokenizer.convert_tokens_to_ids(written + toy.tokenizer.tokenize(target))
    return [(source_ids(toy, text), ids[:column], ids[column]) for column in range(len(begin(toy)), len(ids))]


def embedded(toy, ids):
    return toy.model.get_input_embeddings()(torch.tensor([ids])).detach()


def logits(toy, source, decoder):
    """The model's own next-token logits, [V], if its look-ups of embeddings give these, [1, S, D] and [1, T, D]."""
    given, stacks = iter([source, decoder]), (toy.model.get_encoder(), toy.model.get_decoder())
    tables = {id(stack.embed_tokens): stack.embed_tokens for stack in stacks}  # T5 and Pegasus share one
    handles = [table.register_forward_hook(lambda *_: next(given)) for table in tables.values()]
    ids = [torch.full(one.shape[:2], 5) for one in (source, decoder)]
    assert toy.tokenizer.pad_token_id != 5
    try:
        return toy.model(input_ids=ids[0], decoder_input_ids=ids[1]).logits[0, -1]
    finally:
        for handle in handles:
            handle.remove()


def value(toy, source, decoder, target):
    """The probability of a token, by the model's own forward pass."""
    return logits(toy, source, decoder).softmax(-1)[target]


def test_embeddings_stand_for_ids(toy):
    source, decoder, target = plain_steps(toy, TEXTS[0], TARGETS[0])[1]
    by_ids = toy.model(input_ids=torch.tensor([source]), decoder_input_ids=torch.tensor([decoder])).logits[0, -1]
    found = value(toy, embedded(toy, source), embedded(toy, decoder), target)
    torch.testing.assert_close(found, by_ids.softmax(-1)[target])


def differentiated(toy, source, decoder, target, share=1.0):
    """The embeddings of both sides, and a value's gradients at a share of them, [S, D] and [T, D] each."""
    sides = embedded(toy, source), embedded(toy, decoder)
    points = [(share * side).requires_grad_() for side in sides]
    gradients = torch.autograd.grad(value(toy, *points, target), points)
    return sides, [gradient[0].numpy() for gradient in gradients]


def test_scores_of_source_and_target_are_plain_autograds(toy):
    saliency, effects = (run(toy, method=method).sequences for method in ("saliency", "input_x_gradient"))
    for slopes, products, text, target in zip(saliency, effects, TEXTS, TARGETS, strict=True):
        steps = plain_steps(toy, text, target)
        assert slopes.source_scores.shape == (len(slopes.source_ids), len(steps), toy.model.config.d_model)
        assert slopes.scores.shape == (len(slopes.token_ids), len(steps), toy.model.config.d_model)
        for step, (source, decoder, token) in enumerate(steps):
            sides, gradients = differentiated(toy, source, decoder, token)
            assert gradients[0].any()
            n = len(decoder)
            for one, factors in ((slopes, (1, 1)), (products, [side[0].numpy() for side in sides])):
                of_source, of_target = (gradient * factor for gradient, factor in zip(gradients, factors, strict=True))
                assert one.source_scores[:, step] == pytest.approx(of_source, abs=1e-6, rel=1e-4)
                assert one.scores[:n, step] == pytest.approx(of_target, abs=1e-6, rel=1e-4)
                assert np.isnan(one.scores[n:, step]).all()
            with torch.no_grad():
                expected = value(toy, *sides, token).item()
            assert slopes.step_scores["probability"][step] == pytest.approx(expected, rel=1e-4)


def test_integrated_gradients_are_the_mean_of_plain_ones_on_the_way_from_nothing(toy):
    one = run(toy, method="integrated_gradients", n_steps=3).sequences[0]
    nodes, weights = np.polynomial.legendre.leggauss(3)
    for step, (source, decoder, target) in enumerate(plain_steps(toy, TEXTS[0], TARGETS[0])):
        found = [differentiated(toy, source, decoder, target, (node + 1) / 2) for node in nodes]
        for side, scores in ((0, one.source_scores), (1, one.scores[: len(decoder)])):
            mean = sum(weight / 2 * gradients[side] for weight, (_, gradients) in zip(weights, found, strict=True))
            expected = mean * found[0][0][side][0].numpy()
            assert scores[:, step] == pytest.approx(expected, abs=1e-5, rel=1e-3)


def test_integrated_gradients_of_both_sides_together_are_complete():
    toy = toy_seq2seq("marian")
    one = run(toy, method="integrated_gradients", n_steps=200, attributed_fn="logit").sequences[0]
    for step, (source, decoder, target) in enumerate(plain_steps(toy, TEXTS[0], TARGETS[0])):
        nothing = [torch.zeros(1, len(ids), toy.model.config.d_model) for ids in (source, decoder)]
        with torch.no_grad():
            start = logits(toy, *nothing)[target].item()
        total = one.source_scores[:, step].sum() + np.nansum(one.scores[:, step])
        assert total == pytest.approx(one.step_scores["logit"][step] - start, abs=0.02)


def test_on_the_way_to_a_whole_answer_the_answer_stays(one_of_few):
    toy = one_of_few
    one = run(toy, method="integrated_gradients", n_steps=3, attributed_fn="answer_log_probability").sequences[0]
    steps = plain_steps(toy, TEXTS[0], TARGETS[0])
    assert len(steps) > 1
    nodes, weights = np.polynomial.legendre.leggauss(3)
    n_begin = len(begin(toy))
    expected = [0.0, 0.0]
    for source, decoder, target in steps:
        sides = embedded(toy, source), embedded(toy, decoder)
        for node, weight in zip(nodes, weights, strict=True):
            points = [side * (node + 1) / 2 for side in sides]
            points[1][:, n_begin:] = sides[1][:, n_begin:]
            points = [point.requires_grad_() for point in points]
            value_there = logits(toy, *points).log_softmax(-1)[target]
            slopes = torch.autograd.grad(value_there, points)
            for side, slope in enumerate(slopes):
                n = (len(source), n_begin)[side]
                expected[side] = expected[side] + weight / 2 * (slope * sides[side])[0, :n].numpy()
    assert one.source_scores[:, 0] == pytest.approx(expected[0], abs=1e-5, rel=1e-3)
    assert one.scores[:n_begin, 0] == pytest.approx(expected[1], abs=1e-5, rel=1e-3)
    assert np.isnan(one.scores[n_begin:]).all()


def test_occlusion_of_both_sides_is_what_whole_passes_lose(toy):
    one = run(toy, method="occlusion").sequences[0]
    with torch.no_grad():
        for step, (source, decoder, target) in enumerate(plain_steps(toy, TEXTS[0], TARGETS[0])):
            whole = value(toy, embedded(toy, source), embedded(toy, decoder), target)
            for side, scores in ((0, one.source_scores), (1, one.scores)):
                for token in range(len((source, decoder)[side])):
                    parts = [embedded(toy, source), embedded(toy, decoder)]
                    parts[side][:, token] = 0
                    lost = whole - value(toy, *parts, target)
                    assert scores[token, step] == pytest.approx(lost.item(), abs=1e-5)


def test_lime_masks_neither_special_tokens_nor_languages(one_of_few):
    toy = one_of_few
    one = run(toy, method="lime", n_samples=40).sequences[0]
    language = {"m2m100": "__en__", "marian": ">>fra<<", "t5": "<pad>"}[toy.kind]
    special = {*toy.tokenizer.all_special_ids, *begin(toy), toy.tokenizer.convert_tokens_to_ids(language)}
    for ids, scores in ((one.source_ids, one.source_scores), (one.token_ids, one.scores)):
        assert not special.issuperset(ids)
        for token, of_token in zip(ids, scores, strict=True):
            assert (np.nan_to_num(of_token) == 0).all() == (token in special or np.isnan(of_token).all())
    assert one.details["r2"].shape == (one.stop - one.start,)


@pytest.mark.parametrize(("layers", "rows"), [(-1, slice(-1, None)), ("all", slice(None))])
def test_attention_is_the_decoders_across_and_to_itself(toy, layers, rows):
    one = run(toy, method="attention", heads=[0], layers=layers).sequences[0]
    for step, (source, decoder, _) in enumerate(plain_steps(toy, TEXTS[0], TARGETS[0])):
        with torch.no_grad(), reporting_attention(toy.model):
            ids = {"input_ids": torch.tensor([source]), "decoder_input_ids": torch.tensor([decoder])}
            output = toy.model(**ids, output_attentions=True)
        across, own = (
            torch.stack([weights[0, 0, -1] for weights in found[rows]]).mean(0)
            for found in (output.cross_attentions, output.decoder_attentions)
        )
        assert one.source_scores[:, step] == pytest.approx(across.numpy(), abs=1e-6)
        assert one.scores[: len(decoder), step] == pytest.approx(own.numpy(), abs=1e-6)
    assert one.source_scores.sum(0) == pytest.approx(1)
    assert np.nansum(one.scores, axis=0) == pytest.approx(1)


def test_a_contrast_is_read_after_the_same_source(toy):
    own = [token for _, _, token in plain_steps(toy, TEXTS[0], TARGETS[0])]
    foils = own[::-1]
    options = {"attributed_fn": "contrast_prob_diff", "contrast_targets": [foils], "contrast": "own_prefix"}
    one = run(toy, TEXTS[:1], TARGETS[:1], **options).sequences[0]
    for step, (source, decoder, target) in enumerate(plain_steps(toy, TEXTS[0], TARGETS[0])):
        x, y, z = (embedded(toy, ids).requires_grad_() for ids in (source, decoder, begin(toy) + foils[:step]))
        expected = value(toy, x, y, target) - value(toy, x, z, foils[step])
        assert one.step_scores["contrast_prob_diff"][step] == pytest.approx(expected.item(), abs=1e-6)
        (slope,) = torch.autograd.grad(expected, x)
        assert one.source_scores[:, step] == pytest.approx((slope * x)[0].detach().numpy(), abs=1e-6, rel=1e-4)


def test_dropout_is_that_of_plain_passes_in_training_mode():
    toy = toy_seq2seq("t5")
    toy = replace(toy, model=copy.deepcopy(toy.model))
    for module in toy.model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.3
    one = run(toy, TEXTS[:1], TARGETS[:1], step_scores=["mc_dropout_mean"], n_mcd_steps=4, seed=5).sequences[0]
    assert not any(module.training for module in toy.model.modules())
    toy.model.train()
    for step, (source, decoder, target) in enumerate(plain_steps(toy, TEXTS[0], TARGETS[0])):
        torch.manual_seed(5)
        with torch.no_grad():
            passes = [value(toy, embedded(toy, source), embedded(toy, decoder), target).item() for _ in range(4)]
        assert one.step_scores["mc_dropout_mean"][step] == pytest.approx(np.mean(passes), rel=1e-4)
        assert np.std(passes) > 0


def test_the_tokens_are_those_of_the_languages(toy):
    one = run(toy).sequences[0]
    assert list(one.source_ids) == source_ids(toy, TEXTS[0])
    assert list(one.token_ids[: one.n_prompt]) == begin(toy)
    names = toy.tokenizer.convert_ids_to_tokens(list(one.source_ids))
    assert one.source_tokens == tuple(name.replace("\u2581", " ").replace("\u0120", " ") for name in names)
    assert (one.start, one.stop, len(one.tokens)) == (one.n_prompt, len(one.tokens), len(one.token_ids))
    first = {"m2m100": "__en__", "nllb": "eng_Latn", "marian": ">>fra<<", "mbart50": "en_XX", "bart": "<s>"}
    assert one.source_tokens[0] == first.get(toy.kind, one.source_tokens[0])
    assert one.source_tokens[-1] == ("en_XX" if toy.kind == "mbart" else "</s>")
    assert one.tokens[: one.n_prompt] == toy.begin


def test_what_is_written_is_what_generate_writes(toy):
    reader = seq2seq_texts_of(toy.model, toy.tokenizer, toy.source_language, toy.target_language)
    sources = [reader.source_ids(text) for text in TEXTS]
    assert len(sources[0]) != len(sources[1])  # one is padded
    together = write_targets(toy.model, sources, reader, 6)
    for ids, found in zip(sources, together, strict=True):
        language = "decoder_start_token_id" if toy.kind == "mbart" else "forced_bos_token_id"
        output = toy.model.generate(
            torch.tensor([ids]),
            max_new_tokens=6 + len(begin(toy)) - 1,
            suppress_tokens=[toy.tokenizer.pad_token_id],
            forced_eos_token_id=None,
            use_cache=False,
            **({} if toy.source_language is None else {language: begin(toy)[-1]}),
        )[0].tolist()
        assert output[: len(begin(toy))] == begin(toy)
        end = toy.tokenizer.eos_token_id
        new = output[len(begin(toy)) :]
        assert list(found) == begin(toy) + new[: new.index(end) if end in new else None]


def test_a_target_stops_at_its_end_and_holds_no_padding(one_of_few):
    toy = one_of_few
    reader = seq2seq_texts_of(toy.model, toy.tokenizer, toy.source_language, toy.target_language)
    sources = [source_ids(toy, text) for text in TEXTS]
    plain = write_targets(toy.model, sources, reader, 5)
    passes = []

    def tempted(module, args, logits):
        passes.append(1)
        logits = logits.clone()
        logits[..., toy.tokenizer.pad_token_id] += 1e4
        if len(passes) == 2:
            logits[0, :, toy.tokenizer.eos_token_id] += 1e3
        return logits

    handle = toy.model.get_output_embeddings().register_forward_hook(tempted)
    first, second = write_targets(toy.model, sources, reader, 5)
    handle.remove()
    assert len(plain[0]) > len(begin(toy)) + 1, "ends too early to tell"
    assert (first, second) == (plain[0][: len(begin(toy)) + 1], plain[1])


def test_given_targets_are_all_looked_at_before_the_first_is_attributed(one_of_few):
    toy = one_of_few
    passes = []
    check_logits(toy.model)  # made once per model
    handle = toy.model.get_encoder().register_forward_hook(lambda *_: passes.append(1))
    with pytest.raises(InputError, match="'' has no tokens"):
        run(toy, targets=[TARGETS[0], ""], batch_size=1)
    handle.remove()
    assert not passes


def test_written_targets_are_attributed_as_given_ones(one_of_few):
    toy = one_of_few
    written = run(toy, targets=None, max_new_tokens=4)
    for batch_size in (1, 2):
        again = run(toy, targets=None, max_new_tokens=4, batch_size=batch_size)
        for one, other in zip(written.sequences, again.sequences, strict=True):
            assert (one.token_ids, one.n_prompt) == (other.token_ids, other.n_prompt)
            np.testing.assert_allclose(one.source_scores, other.source_scores, atol=1e-6, rtol=1e-4)


def test_start_and_end_choose_columns(one_of_few):
    toy = one_of_few
    whole, part = (run(toy, **limits).sequences[0] for limits in ({}, {"start": 1, "end": 2}))
    assert (part.start, part.stop) == (whole.start + 1, whole.start + 2)
    np.testing.assert_allclose(part.scores, whole.scores[:, 1:2], atol=1e-7)
    np.testing.assert_allclose(part.source_scores, whole.source_scores[:, 1:2], atol=1e-7)


def test_the_tokenizers_languages_are_put_back():
    for kind in ("m2m100", "nllb"):
        toy = toy_seq2seq(kind)
        codes = list(language_codes(toy.tokenizer))
        toy.tokenizer.src_lang, toy.tokenizer.tgt_lang = codes[5:7]
        before = toy.tokenizer("hello").input_ids
        run(toy)
        assert (toy.tokenizer.src_lang, toy.tokenizer.tgt_lang) == tuple(codes[5:7])
        assert toy.tokenizer("hello").input_ids == before


# ---- Bad input


@pytest.mark.parametrize(
    ("kind", "languages", "message"),
    [
        (
            "m2m100",
            {"target_language": "fr"},
            "source_language is missing; give the language's code, such as af, am, ar",
        ),
        (
            "nllb",
            {"source_language": "eng_Latn"},
            "target_language is missing; give the language's code, such as ace_Arab, ace_Latn, acm_Arab",
        ),
        ("marian", {}, "target_language is missing; give one of: fra, spa"),
        ("marian", {"target_language": "fr"}, "unknown target_language 'fr'; did you mean 'fra'? Allowed: fra, spa"),
        (
            "marian",
            {"source_language": "eng", "target_language": "fra"},
            "source_language: Marian models take no source language; leave it out",
        ),
    ],
)
def test_languages_that_are_missing_or_unknown_are_errors(kind, languages, message):
    toy = toy_seq2seq(kind)
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        attribute(toy.model, toy.tokenizer, TEXTS, TARGETS, **languages)


def test_a_tokenizer_that_writes_inside_a_target_is_an_error():
    class Splitting:
        def __call__(self, text_target, add_special_tokens=True):
            return {"input_ids": [3, 0, 4] if add_special_tokens else [3, 4]}

    message = "Splitting adds special tokens inside the target 'hello', not only around it; give its token ids"
    with pytest.raises(InputError, match=f"^{message}$"):
        Seq2SeqTexts(Splitting(), (0,)).target_ids("hello")


def test_the_nearest_language_is_shown():
    toy = toy_seq2seq("nllb")
    message = "unknown source_language 'eng_Lat'; did you mean 'eng_Latn'? Allowed: ace_Arab, "
    with pytest.raises(InputError, match=f"^{re.escape(message)}"):
        attribute(toy.model, toy.tokenizer, TEXTS, source_language="eng_Lat", target_language="fra_Latn")


def test_a_marian_model_of_one_language_takes_none(monkeypatch):
    toy = toy_seq2seq("marian")
    monkeypatch.setattr(toy.tokenizer, "supported_language_codes", [])
    message = "target_language: this Marian model has one target language; leave it out"
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        run(toy)
    one = attribute(toy.model, toy.tokenizer, TEXTS, TARGETS).sequences[0]
    assert list(one.source_ids) == toy.tokenizer(TEXTS[0]).input_ids


@pytest.mark.parametrize("name", ["source_language", "target_language"])
def test_only_translation_models_take_languages(llama, name):
    message = "source_language and target_language are for translation models; leave them out"
    for model in (llama, toy_seq2seq("t5").model):
        with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
            attribute(model, toy_seq2seq("t5").tokenizer, TEXTS, **{name: "fr"})


def config_of(**values):
    return SimpleNamespace(config=SimpleNamespace(is_encoder_decoder=True, decoder_start_token_id=0, **values))


def test_another_encoder_decoder_family_is_refused():
    message = "encoder-decoder models of type 'led' are not supported; supported: bart (BART), m2m_100 (M2M100, NLLB), "
    with pytest.raises(UnsupportedModelError, match=f"^{re.escape(message)}"):
        seq2seq_texts_of(config_of(model_type="led"), None, None, None)
    message = "Marian models with separate source and target vocabularies are not supported"
    with pytest.raises(UnsupportedModelError, match=f"^{re.escape(message)}$"):
        seq2seq_texts_of(config_of(model_type="marian", share_encoder_decoder_embeddings=False), None, None, None)


def test_a_model_that_does_not_say_how_its_decoder_starts_is_an_error():
    sizes = {"d_model": 8, "d_kv": 4, "d_ff": 8, "num_layers": 1, "num_heads": 2}
    model = T5ForConditionalGeneration(T5Config(vocab_size=9, **sizes))
    message = "^the configuration of the model does not say with which token its decoder starts; set model.generation_"
    with pytest.raises(InputError, match=message):
        seq2seq_texts_of(model, toy_seq2seq("t5").tokenizer, None, None)
    model.generation_config.decoder_start_token_id = 0
    assert seq2seq_texts_of(model, toy_seq2seq("t5").tokenizer, None, None).begin == (0,)


FITTING = (
    "saliency, input_x_gradient, integrated_gradients, sequential_integrated_gradients, "
    "discretized_integrated_gradients, gradient_shap, attention, occlusion, lime, kernel_shap"
)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "deeplift"}, f"method 'deeplift' does not support encoder-decoder models; these do: {FITTING}"),
        (
            {"method": "layer_deeplift"},
            f"method 'layer_deeplift' does not support encoder-decoder models; these do: {FITTING}",
        ),
        ({"targets": ["hello", ""]}, "targets[1] '' has no tokens; there is nothing to attribute"),
        ({"prompts": ["I", None]}, "prompts[1] is None; give a string"),
        ({"targets": ["hello", 3]}, "targets[1] is 3; give a string, or a list of token ids"),
    ],
)
def test_what_encoder_decoders_do_not_support_is_an_error(one_of_few, options, message):
    toy = one_of_few
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        run(toy, **options)


LONG = "I love pizza " * 40


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"prompts": ["I", LONG]}, r"prompts\[1\]"),
        ({"targets": ["hello", LONG]}, r"targets\[1\]"),
        (
            {
                "targets": ["I love", "I love"],
                "contrast_targets": ["I love", LONG],
                "attributed_fn": "contrast_prob_diff",
                "contrast": "own_prefix",
            },
            r"contrast_targets\[1\]",
        ),
    ],
)
def test_texts_of_more_tokens_than_the_model_has_places_for_are_errors(options, what):
    toy = toy_seq2seq("m2m100")
    assert toy.model.config.max_position_embeddings == 64
    with pytest.raises(InputError, match=rf"^{what} has \d+ tokens; this model reads at most 64$"):
        run(toy, **options)


def test_more_tokens_than_can_be_written_are_errors():
    toy = toy_seq2seq("m2m100")
    message = "^the beginning of a target has 2 tokens; with 64 new tokens it exceeds the 64 that this model reads$"
    with pytest.raises(InputError, match=message):
        run(toy, targets=None, max_new_tokens=64)


def test_texts_of_a_model_without_places_may_have_any_length():
    (one,) = run(toy_seq2seq("t5"), [LONG], ["I love"]).sequences
    assert len(one.source_ids) > 64


def test_an_unknown_method_is_an_error_as_for_other_models():
    with pytest.raises(InputError, match="^unknown method 'limes'; did you mean 'lime'"):
        run(toy_seq2seq("m2m100"), method="limes")
