"""Translation models: languages are set as for their tokenizers, and scores equal plain autograd."""

import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import transformers

from interpret.anatomy import check_logits, language_codes, reporting_attention
from interpret.attribution._attribute import attribute
from interpret.attribution.languages import languages_of
from interpret.attribution.translation import write_translations
from interpret.errors import InputError, UnsupportedModelError
from reference.toy_translation import KINDS, Toy, toy_translation

TEXTS = ["I love eating pizza.", "The Eiffel Tower"]
TRANSLATIONS = ["hello cheese", "capital of Japan"]


@pytest.fixture(params=KINDS)
def toy(request) -> Toy:
    toy = toy_translation(request.param)
    weights = {name: value.clone() for name, value in toy.model.state_dict().items()}
    yield toy
    assert all(torch.equal(value, weights[name]) for name, value in toy.model.state_dict().items())
    assert all(parameter.grad is None for parameter in toy.model.parameters())
    assert not toy.model.training


def flags(toy):
    return {"source_language": toy.source_language, "target_language": toy.target_language}


def run(toy, prompts=TEXTS, targets=TRANSLATIONS, **options):
    return attribute(toy.model, toy.tokenizer, prompts, targets, **flags(toy), **options)


def source_ids(toy, text):
    """Translate as in the documentation of transformers."""
    if toy.source_language is None:
        return toy.tokenizer(f">>{toy.target_language}<< {text}").input_ids
    toy.tokenizer.src_lang = toy.source_language
    return toy.tokenizer(text).input_ids


def begin(toy):
    start = toy.model.config.decoder_start_token_id
    return [start] if toy.source_language is None else [start, language_codes(toy.tokenizer)[toy.target_language]]


def embedded(toy, ids):
    return toy.model.get_input_embeddings()(torch.tensor([ids])).detach()


def value(toy, source, decoder, target):
    """The probability of a token, by the model's own forward pass, for embeddings [1, S, D] and [1, T, D]."""
    scale = toy.model.config.d_model**0.5
    of_source, of_target = scale, scale
    if hasattr(
        transformers, "Cache"
    ):  # later releases than 4.34.0 scale in the embeddings, or what the decoder is given
        of_source, of_target = (scale, 1.0) if toy.model.config.model_type == "marian" else (1.0, 1.0)
    output = toy.model(inputs_embeds=source * of_source, decoder_inputs_embeds=decoder * of_target)
    return output.logits[0, -1].softmax(-1)[target]


def plain_steps(toy, text, translation):
    """Source tokens, decoder tokens so far, and the next token, at each step."""
    plain = toy.tokenizer.convert_tokens_to_ids(toy.tokenizer.tokenize(translation))
    ids = begin(toy) + plain
    return [(source_ids(toy, text), ids[:column], ids[column]) for column in range(len(begin(toy)), len(ids))]


def test_embeddings_stand_for_ids(toy):
    source, decoder, target = plain_steps(toy, TEXTS[0], TRANSLATIONS[0])[1]
    by_ids = toy.model(input_ids=torch.tensor([source]), decoder_input_ids=torch.tensor([decoder])).logits[0, -1]
    found = value(toy, embedded(toy, source), embedded(toy, decoder), target)
    torch.testing.assert_close(found, by_ids.softmax(-1)[target])


@pytest.mark.parametrize("method", ["saliency", "input_x_gradient"])
def test_scores_of_source_and_target_are_plain_autograds(toy, method):
    found = run(toy, method=method)
    for one, text, translation in zip(found.sequences, TEXTS, TRANSLATIONS, strict=True):
        steps = plain_steps(toy, text, translation)
        assert one.source_scores.shape == (len(one.source_ids), len(steps), toy.model.config.d_model)
        assert one.scores.shape == (len(one.token_ids), len(steps), toy.model.config.d_model)
        for step, (source, decoder, target) in enumerate(steps):
            x, y = embedded(toy, source).requires_grad_(), embedded(toy, decoder).requires_grad_()
            result = value(toy, x, y, target)
            gradients = torch.autograd.grad(result, [x, y])
            if method == "input_x_gradient":
                gradients = [gradient * of for gradient, of in zip(gradients, (x, y), strict=True)]
            of_source, of_target = (gradient[0].detach().numpy() for gradient in gradients)
            assert of_source.any()
            assert one.source_scores[:, step] == pytest.approx(of_source, abs=1e-6, rel=1e-4)
            assert one.scores[: len(decoder), step] == pytest.approx(of_target, abs=1e-6, rel=1e-4)
            assert np.isnan(one.scores[len(decoder) :, step]).all()
            assert one.step_scores["probability"][step] == pytest.approx(result.item(), rel=1e-4)


def test_integrated_gradients_of_both_sides_together_are_complete(toy):
    found = run(toy, method="integrated_gradients", n_steps=200, step_scores=["logit"], attributed_fn="logit")
    one = found.sequences[0]
    for step, (source, decoder, target) in enumerate(plain_steps(toy, TEXTS[0], TRANSLATIONS[0])):
        nothing = [torch.zeros(1, len(ids), toy.model.config.d_model) for ids in (source, decoder)]
        with torch.no_grad():
            start = toy.model(inputs_embeds=nothing[0], decoder_inputs_embeds=nothing[1]).logits[0, -1, target].item()
        total = one.source_scores[:, step].sum() + np.nansum(one.scores[:, step])
        assert total == pytest.approx(one.step_scores["logit"][step] - start, abs=0.02)


def test_occlusion_of_both_sides_is_what_whole_passes_lose(toy):
    one = run(toy, method="occlusion").sequences[0]
    with torch.no_grad():
        for step, (source, decoder, target) in enumerate(plain_steps(toy, TEXTS[0], TRANSLATIONS[0])):
            whole = value(toy, embedded(toy, source), embedded(toy, decoder), target)
            for side, scores in ((0, one.source_scores), (1, one.scores)):
                for token in range(len((source, decoder)[side])):
                    parts = [embedded(toy, source), embedded(toy, decoder)]
                    parts[side][:, token] = 0
                    lost = whole - value(toy, *parts, target)
                    assert scores[token, step] == pytest.approx(lost.item(), abs=1e-5)


def test_lime_masks_neither_special_tokens_nor_languages(toy):
    one = run(toy, method="lime", n_samples=40).sequences[0]
    special = {*toy.tokenizer.all_special_ids, *begin(toy), source_ids(toy, "I")[0]}
    for ids, scores in ((one.source_ids, one.source_scores), (one.token_ids, one.scores)):
        for token, of_token in zip(ids, scores, strict=True):
            assert (np.nan_to_num(of_token) == 0).all() == (token in special or np.isnan(of_token).all())
    assert one.details["r2"].shape == (one.stop - one.start,)


@pytest.mark.parametrize(("layers", "rows"), [(None, [1]), ((0, 2), [0, 1])])
def test_attention_is_the_decoders_across_and_to_itself(toy, layers, rows):
    chosen = {} if layers is None else {"layers": layers}
    one = run(toy, method="attention", heads=[0], **chosen).sequences[0]
    for step, (source, decoder, _) in enumerate(plain_steps(toy, TEXTS[0], TRANSLATIONS[0])):
        with torch.no_grad(), reporting_attention(toy.model):
            ids = {"input_ids": torch.tensor([source]), "decoder_input_ids": torch.tensor([decoder])}
            output = toy.model(**ids, output_attentions=True)
        across, own = (
            torch.stack([found[row][0, 0, -1] for row in rows]).mean(0)
            for found in (output.cross_attentions, output.decoder_attentions)
        )
        assert one.source_scores[:, step] == pytest.approx(across.numpy(), abs=1e-6)
        assert one.scores[: len(decoder), step] == pytest.approx(own.numpy(), abs=1e-6)
    assert one.source_scores.sum(0) == pytest.approx(1)
    assert np.nansum(one.scores, axis=0) == pytest.approx(1)


def test_a_contrast_is_read_after_the_same_source(toy):
    foils = ["hello Tower", "capital of Paris"]
    options = {"attributed_fn": "contrast_prob_diff", "contrast_targets": foils, "method": "input_x_gradient"}
    one = run(toy, contrast="own_prefix", **options).sequences[0]
    steps = zip(plain_steps(toy, TEXTS[0], TRANSLATIONS[0]), plain_steps(toy, TEXTS[0], foils[0]), strict=False)
    for step, ((source, decoder, target), (_, other, foil)) in enumerate(steps):
        with torch.no_grad():
            x = embedded(toy, source)
            expected = value(toy, x, embedded(toy, decoder), target) - value(toy, x, embedded(toy, other), foil)
        assert one.step_scores["contrast_prob_diff"][step] == pytest.approx(expected.item(), abs=1e-6)


def test_the_tokens_are_those_of_the_languages(toy):
    one = run(toy).sequences[0]
    assert list(one.source_ids) == source_ids(toy, TEXTS[0])
    assert list(one.token_ids[: one.n_prompt]) == begin(toy)
    assert one.source_tokens == tuple(
        name.replace("\u2581", " ") for name in toy.tokenizer.convert_ids_to_tokens(list(one.source_ids))
    )
    assert (one.start, one.stop, len(one.tokens)) == (one.n_prompt, len(one.tokens), len(one.token_ids))
    first = {"m2m100": "__en__", "nllb": "eng_Latn", "marian": ">>fra<<"}
    last = {"m2m100": "__fr__", "nllb": "fra_Latn", "marian": "<pad>"}
    kind = next(kind for kind in KINDS if toy_translation(kind) is toy)
    assert (one.source_tokens[0], one.tokens[one.n_prompt - 1]) == (first[kind], last[kind])


def test_what_is_written_is_what_generate_writes(toy):
    languages = languages_of(toy.model, toy.tokenizer, *flags(toy).values())
    sources = [languages.source_ids(text) for text in TEXTS]
    assert len(sources[0]) != len(sources[1])  # one is padded
    together = write_translations(toy.model, sources, languages, 6)
    for ids, found in zip(sources, together, strict=True):
        forced = {} if toy.source_language is None else {"forced_bos_token_id": begin(toy)[1]}
        output = toy.model.generate(
            torch.tensor([ids]),
            max_new_tokens=6 + len(forced),
            suppress_tokens=[toy.tokenizer.pad_token_id],
            forced_eos_token_id=None,
            **forced,
        )[0].tolist()
        end = toy.tokenizer.eos_token_id
        new = output[len(begin(toy)) :]
        assert list(found) == begin(toy) + new[: new.index(end) if end in new else None]


def test_a_translation_stops_at_its_end_and_holds_no_padding(toy):
    languages = languages_of(toy.model, toy.tokenizer, *flags(toy).values())
    sources = [source_ids(toy, text) for text in TEXTS]
    plain = write_translations(toy.model, sources, languages, 5)
    passes = []

    def tempted(module, args, logits):
        passes.append(1)
        logits = logits.clone()
        logits[..., toy.tokenizer.pad_token_id] += 1e4
        if len(passes) == 2:
            logits[0, :, toy.tokenizer.eos_token_id] += 1e3
        return logits

    handle = toy.model.get_output_embeddings().register_forward_hook(tempted)
    first, second = write_translations(toy.model, sources, languages, 5)
    handle.remove()
    assert len(plain[0]) > len(begin(toy)) + 1, "ends too early to tell"
    assert (first, second) == (plain[0][: len(begin(toy)) + 1], plain[1])


def test_given_translations_are_all_looked_at_before_the_first_is_attributed(toy):
    passes = []
    check_logits(toy.model)  # made once per model
    handle = toy.model.get_encoder().register_forward_hook(lambda *_: passes.append(1))
    with pytest.raises(InputError, match="'' has no tokens"):
        run(toy, targets=[TRANSLATIONS[0], ""], batch_size=1)
    handle.remove()
    assert not passes


def test_written_translations_are_attributed_as_given_ones(toy):
    written = run(toy, targets=None, max_new_tokens=4)
    for batch_size in (1, 2):
        again = run(toy, targets=None, max_new_tokens=4, batch_size=batch_size)
        for one, other in zip(written.sequences, again.sequences, strict=True):
            assert (one.token_ids, one.n_prompt) == (other.token_ids, other.n_prompt)
            np.testing.assert_allclose(one.source_scores, other.source_scores, atol=1e-6, rtol=1e-4)


def test_start_and_end_choose_columns(toy):
    whole, part = (run(toy, **limits).sequences[0] for limits in ({}, {"start": 1, "end": 2}))
    assert (part.start, part.stop) == (whole.start + 1, whole.start + 2)
    np.testing.assert_allclose(part.scores, whole.scores[:, 1:2], atol=1e-7)
    np.testing.assert_allclose(part.source_scores, whole.source_scores[:, 1:2], atol=1e-7)


def test_the_tokenizers_languages_are_put_back():
    for kind in ("m2m100", "nllb"):
        toy = toy_translation(kind)
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
    toy = toy_translation(kind)
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        attribute(toy.model, toy.tokenizer, TEXTS, TRANSLATIONS, **languages)


def test_the_nearest_language_is_shown():
    toy = toy_translation("nllb")
    message = "unknown source_language 'eng_Lat'; did you mean 'eng_Latn'? Allowed: ace_Arab, "
    with pytest.raises(InputError, match=f"^{re.escape(message)}"):
        attribute(toy.model, toy.tokenizer, TEXTS, source_language="eng_Lat", target_language="fra_Latn")


def test_a_marian_model_of_one_language_takes_none(monkeypatch):
    toy = toy_translation("marian")
    monkeypatch.setattr(toy.tokenizer, "supported_language_codes", [])
    message = "target_language: this Marian model has one target language; leave it out"
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        run(toy)
    one = attribute(toy.model, toy.tokenizer, TEXTS, TRANSLATIONS).sequences[0]
    assert list(one.source_ids) == toy.tokenizer(TEXTS[0]).input_ids


def test_a_decoder_only_model_takes_no_languages(llama):
    message = "source_language and target_language are for translation models; leave them out"
    for name in ("source_language", "target_language"):
        with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
            attribute(llama, toy_translation("m2m100").tokenizer, TEXTS, **{name: "fr"})


def config_of(**values):
    return SimpleNamespace(config=SimpleNamespace(is_encoder_decoder=True, decoder_start_token_id=0, **values))


def test_another_encoder_decoder_family_is_refused():
    message = "encoder-decoder models of type 't5' are not supported; supported: m2m_100 (M2M100, NLLB), marian"
    with pytest.raises(UnsupportedModelError, match=f"^{re.escape(message)}$"):
        languages_of(config_of(model_type="t5"), None, None, None)
    message = "Marian models with separate source and target vocabularies are not supported"
    with pytest.raises(UnsupportedModelError, match=f"^{re.escape(message)}$"):
        languages_of(config_of(model_type="marian", share_encoder_decoder_embeddings=False), None, None, None)


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
        (
            {"step_scores": ["mc_dropout_mean"]},
            "'mc_dropout_mean' does not support encoder-decoder models; use 'probability'",
        ),
        ({"targets": ["hello", ""]}, "targets[1] '' has no tokens; there is nothing to attribute"),
        ({"prompts": ["I", None]}, "prompts[1] is None; give a string"),
        ({"targets": ["hello", 3]}, "targets[1] is 3; give a string, or a list of token ids"),
    ],
)
def test_what_translation_models_do_not_support_is_an_error(toy, options, message):
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
def test_texts_of_more_tokens_than_the_model_has_places_for_are_errors(toy, options, what):
    assert toy.model.config.max_position_embeddings == 64
    with pytest.raises(InputError, match=rf"^{what} has \d+ tokens; this model reads at most 64$"):
        run(toy, **options)


def test_more_tokens_than_can_be_written_are_errors(toy):
    message = rf"^the beginning of a translation has {len(begin(toy))} tokens; with 64 new tokens it exceeds the"
    with pytest.raises(InputError, match=message):
        run(toy, targets=None, max_new_tokens=64)


def test_an_unknown_method_is_an_error_as_for_other_models(toy):
    with pytest.raises(InputError, match="^unknown method 'limes'; did you mean 'lime'"):
        run(toy, method="limes")
