"""Figures of activations: they show the recorded values, layers in order, every token with its label."""

import re

import matplotlib
import matplotlib.image
import numpy as np
import pytest
import torch
from matplotlib.colors import to_hex
from transformers import LlamaConfig, LlamaForCausalLM

from interpret.activations import activation_cache
from interpret.anatomy import anatomy_of, reporting_attention
from interpret.drawing.palette import diverging, sequential
from interpret.errors import InputError, RunError, UnsupportedModelError
from interpret.probing import (
    attention_figure,
    attention_patterns,
    induction_figure,
    neuron_figure,
    norm_figure,
    query_key_figure,
    residual_figure,
    trajectory_figure,
)
from interpret.probing.heads import induction_scores
from reference.kinds import D, L, V
from reference.tiny import tiny_model
from reference.toy_tokenizers import byte_level, word_tokenizer

ROWS = [[5, 6, 7, 8, 9], [20, 30]]
IDS = torch.tensor(ROWS[:1])
T, H = 5, 4


def drawn(figure):
    """The values of a figure's heatmap, empty cells as NaN."""
    (image,) = figure.axes[0].get_images()
    return np.ma.filled(image.get_array().astype(float), np.nan)


def labels(axis):
    return [text.get_text() for text in axis.get_ticklabels()]


def lines(panel):
    return {line.get_label(): np.array(line.get_ydata()) for line in panel.get_lines()}


def lower(square):
    return np.where(np.tri(len(square), dtype=bool), square, np.nan)


@pytest.fixture(params=["llama", "gpt2"])
def model(request):
    return tiny_model(request.param)


@pytest.fixture
def cache(model):
    return activation_cache(model, None, ROWS)


def test_attention_is_that_of_the_head(model):
    with torch.no_grad(), reporting_attention(model):
        own = model(IDS, output_attentions=True).attentions[2][0, 3].numpy()
    figure = attention_figure(attention_patterns(model, IDS), 2, 3, IDS, word_tokenizer())
    np.testing.assert_allclose(drawn(figure), lower(own), rtol=1e-4, atol=1e-6)
    panel = figure.axes[0]
    assert labels(panel.xaxis) == labels(panel.yaxis) == ["w5", "w6", "w7", "w8", "w9"]
    assert panel.get_title() == "Attention of layer 2, head 3"
    assert figure.axes[1].get_ylabel() == "attention probability"
    (image,) = panel.get_images()
    assert image.cmap.name == sequential().name
    assert image.norm.vmin == 0


def test_products_are_those_of_queries_and_keys(model, cache):
    # GPT-2 has no rotary embedding: its attention is the softmax of the scaled products.
    figure = query_key_figure(cache, 1, 2)
    queries, keys = cache["q.1"][0, :, 2], cache["k.1"][0, :, 2 * cache["k.1"].shape[2] // H]
    np.testing.assert_allclose(drawn(figure), lower((queries @ keys.T).numpy()), rtol=1e-5)
    if model.config.model_type == "gpt2":
        scores = torch.from_numpy(drawn(figure)).nan_to_num(-torch.inf) / (D // H) ** 0.5
        own = attention_patterns(model, IDS)[1][0, 2]
        torch.testing.assert_close(scores.softmax(-1).float(), own, rtol=1e-4, atol=1e-5)
    (image,) = figure.axes[0].get_images()
    assert image.cmap.name == diverging().name
    assert image.norm.vmin == -image.norm.vmax
    assert labels(figure.axes[0].xaxis) == ["5", "6", "7", "8", "9"], "ids without a tokenizer"


def test_neurons_are_those_asked_for_or_the_loudest(cache):
    said = cache.of("neurons.2", 0).numpy()
    figure = neuron_figure(cache, 2, [7, 0, 40], word_tokenizer())
    np.testing.assert_allclose(drawn(figure), said[:, [7, 0, 40]])
    assert labels(figure.axes[0].xaxis) == ["7", "0", "40"]
    assert labels(figure.axes[0].yaxis) == ["w5", "w6", "w7", "w8", "w9"]
    loudest = np.argsort(-np.abs(said).max(axis=0))[:5]
    assert labels(neuron_figure(cache, 2, 5).axes[0].xaxis) == [str(neuron) for neuron in loudest]
    assert drawn(neuron_figure(cache, 2, 5, prompt=1)).shape == (2, 5)


def deep_model():
    """A model of twelve layers, so that there is a layer 10 as well as a layer 2."""
    config = LlamaConfig(
        vocab_size=V, hidden_size=8, intermediate_size=8, num_hidden_layers=12, num_attention_heads=2,
        max_position_embeddings=32,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def test_layers_stand_in_their_natural_order():
    model = deep_model()
    whole = activation_cache(model, None, ROWS)
    # Names in the order of the alphabet, as a folder may list them: layer 10 before layer 2.
    shuffled = type(whole)(whole.token_ids, tuple(sorted(whole.names)), whole._read)
    assert shuffled.names.index("resid_post.10") < shuffled.names.index("resid_post.2")
    norms = np.stack([whole.of(f"resid_post.{layer}", 0).norm(dim=-1).numpy() for layer in range(12)], axis=1)
    figure = residual_figure(shuffled)
    np.testing.assert_allclose(drawn(figure), norms, rtol=1e-5)
    assert labels(figure.axes[0].xaxis) == [str(layer) for layer in range(12)]
    line = trajectory_figure(shuffled, [3]).axes[0].get_lines()[0]
    assert line.get_xdata().tolist() == list(range(12))
    np.testing.assert_allclose(line.get_ydata(), [whole[f"resid_post.{k}"][0, -1, 3] for k in range(12)])
    scores = torch.arange(24.0).view(12, 2) / 24
    assert labels(induction_figure(scores).axes[0].yaxis) == [str(layer) for layer in range(12)]


def test_trajectories_are_of_one_token_and_distinguishable(cache):
    figure = trajectory_figure(cache, [3, 0], word_tokenizer(), site="neurons", position=1)
    expected = {str(n): np.array([cache[f"neurons.{k}"][0, 1, n] for k in range(L)]) for n in (3, 0)}
    found = lines(figure.axes[0])
    for name, values in expected.items():
        np.testing.assert_allclose(found[name], values)
    assert figure.axes[0].get_title() == 'Features of neurons at token 1, "w6"'
    looks = {(to_hex(line.get_color()), str(line.get_linestyle())) for line in figure.axes[0].get_lines()[:2]}
    assert len(looks) == 2


def test_stream_norms_are_drawn_on_a_logarithmic_scale(cache):
    figure = residual_figure(cache, word_tokenizer(), prompt=1)
    expected = np.stack([cache[f"resid_post.{k}"][1, :2].norm(dim=-1).numpy() for k in range(L)], axis=1)
    np.testing.assert_allclose(drawn(figure), expected, rtol=1e-5)
    (image,) = figure.axes[0].get_images()
    assert isinstance(image.norm, matplotlib.colors.LogNorm)
    assert figure.axes[1].get_ylabel() == "L2 norm, logarithmic"


def through(model, modules):
    """Inputs and outputs of some modules in a plain pass."""
    passed = []
    handles = [
        module.register_forward_hook(lambda _, args, output: passed.append((args[0], output))) for module in modules
    ]
    model(IDS)
    for handle in handles:
        handle.remove()
    return passed


@torch.no_grad()
def test_input_and_output_of_each_norm_are_drawn(family_model):
    cache = activation_cache(family_model, None, ROWS)
    anatomy = anatomy_of(family_model)
    if not anatomy.parts.attention_norm:
        with pytest.raises(
            UnsupportedModelError, match="^norm_figure does not support olmo2: its norms apply to the outputs"
        ):
            norm_figure(family_model, cache)
        return
    figure = norm_figure(family_model, cache)
    for panel, path in zip(figure.axes, (anatomy.family.parts.attention_norm, anatomy.family.mlp_norm), strict=True):
        passed = through(family_model, [layer.get_submodule(path) for layer in anatomy.layers])
        for label, number in (("input of the norm", 0), ("output of the norm", 1)):
            expected = [np.median(pair[number].view(T, D).norm(dim=-1).numpy()) for pair in passed]
            np.testing.assert_allclose(lines(panel)[label], expected, rtol=1e-4)
    place = "after" if anatomy.block == "post_norm" else "before"
    assert [panel.get_title() for panel in figure.axes] == [f"Norm {place} the attention", f"Norm {place} the MLP"]


def test_induction_scores_are_layers_by_heads_and_the_highest_are_marked(model):
    scores = induction_scores(model, n_tokens=5)
    figure = induction_figure(scores, marked=2)
    np.testing.assert_allclose(drawn(figure), scores.numpy(), rtol=1e-6)
    assert labels(figure.axes[0].xaxis) == list("0123")
    highest = scores.flatten().topk(2)
    places = [divmod(int(flat), H) for flat in highest.indices]
    written = {text.get_position()[::-1]: text.get_text() for text in figure.axes[0].texts}
    assert written == {
        place: f"{value:.2f}".removeprefix("0") for place, value in zip(places, highest.values.tolist(), strict=True)
    }
    (image,) = figure.axes[0].get_images()
    assert (image.norm.vmin, image.norm.vmax) == (0, 1)


@pytest.mark.parametrize("ending", ["png", "pdf"])
def test_files_are_written_and_the_same_each_time(cache, tmp_path, ending):
    files = [tmp_path / f"{number}.{ending}" for number in range(2)]
    for file in files:
        residual_figure(cache, word_tokenizer(), to=file)
    assert files[0].read_bytes() == files[1].read_bytes()
    if ending == "png":
        assert matplotlib.image.imread(files[0]).std() > 0.05


def test_tokens_of_every_kind_get_a_label(tmp_path):
    text = "Naïve $5\n東 \t_"
    ids = torch.tensor([byte_level()(text).input_ids])
    config = LlamaConfig(
        vocab_size=420, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=64,
    )  # fmt: skip
    patterns = attention_patterns(LlamaForCausalLM(config).eval(), ids)
    figure = attention_figure(patterns, 0, 1, ids, byte_level(), to=tmp_path / "odd.png")
    found = labels(figure.axes[0].yaxis)
    assert len(found) == ids.shape[1]
    assert {"\\$", "\u21b5"} <= {label.strip() for label in found}


WRONG = [
    (lambda cache: query_key_figure(cache, 9, 0), "the cache holds no q.9: make it with names=['q.9', 'k.9'], or more"),
    (lambda cache: query_key_figure(cache, 1, 4), "head 4"),
    (lambda cache: query_key_figure(cache, 1, 0, prompt=2), "prompt 2 does not exist; this cache has prompts 0 to 1"),
    (lambda cache: neuron_figure(cache, 1, [999]), "neuron 999"),
    (lambda cache: neuron_figure(cache, 1, 999), "neurons is 999: give a number from 1 to 48, or a list of neurons"),
    (lambda cache: neuron_figure(cache, 1, 0), "neurons is 0"),
    (lambda cache: neuron_figure(cache, 1, []), "neurons is empty"),
    (lambda cache: trajectory_figure(cache, [D]), f"feature {D}"),
    (lambda cache: trajectory_figure(cache, []), "0 features: give 1 to 6, so that the lines can be distinguished"),
    (lambda cache: trajectory_figure(cache, [1], site="heads"), "heads has a head dimension: give a site whose"),
    (lambda cache: trajectory_figure(cache, [1], site="resid"), 'the cache holds no resid: make it with names=["resid'),
    (lambda cache: trajectory_figure(cache, [1], position=7), "position 7 does not exist; prompt 0 has 5 tokens"),
    (lambda cache: residual_figure(cache, to="x.jpg"), "to='x.jpg': the file has to end in .png or .pdf"),
    (lambda cache: induction_figure(torch.ones(3)), "scores have the shape (3,): give [layers, heads]"),
]


@pytest.mark.parametrize(("draw", "message"), WRONG, ids=[message[:30] for _, message in WRONG])
def test_wrong_requests_are_refused(draw, message):
    cache = activation_cache(tiny_model("llama"), None, ROWS)
    with pytest.raises(InputError, match=re.escape(message)):
        draw(cache)


def test_attention_that_was_not_recorded_is_refused(model):
    patterns = attention_patterns(model, IDS, layers=[1])
    with pytest.raises(InputError, match="unknown layer 2; Allowed: 1"):
        attention_figure(patterns, 2, 0, IDS)
    with pytest.raises(InputError, match="head 9"):
        attention_figure(patterns, 1, 9, IDS)
    with pytest.raises(InputError, match="prompt 1"):
        attention_figure(patterns, 1, 0, IDS, prompt=1)


def test_a_missing_folder_is_an_error(cache, tmp_path):
    with pytest.raises(RunError, match=r"figure.png cannot be written: No such file or directory"):
        residual_figure(cache, to=tmp_path / "nowhere" / "figure.png")
