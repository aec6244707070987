"""Every public call that takes a model, with something to do for it: its name -> a function of the model.

What stands after a name in parentheses tells calls of the same name apart.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedModel
from transformers.generation import MaxLengthCriteria, StoppingCriteriaList

import interpret
from interpret.anatomy import anatomy_of, input_device
from interpret.anatomy.passes import checkpointed
from interpret.tracing.mediators import MEDIATORS
from reference.kinds import D
from reference.tiny import resize_vocabulary, tiny_model
from reference.toy_seq2seq import toy_seq2seq
from reference.toy_tokenizers import byte_level

TOKENIZER = byte_level()
PROMPT, SUBJECT = "The Eiffel Tower is in the city of", "The Eiffel Tower"
TEXTS = [PROMPT + " Paris", "I love eating pizza"]
PAIRS = [
    ("I love pizza", "I love apples"),
    ("Anna's apples", "Anna's cheese"),
    ("the city of Paris", "the city of Rome"),
]
FACTS = [interpret.Fact("fact_1", PROMPT, SUBJECT, "Paris", foil="London")]
TEMPLATE = interpret.InterpretationPrompt(TOKENIZER, ("Say", 0, " is ", 0, ":"), name="say")
SETTINGS = interpret.tracing.TraceSettings(samples=2)

CALLS: dict[str, Callable[[PreTrainedModel], Any]] = {}


def call(name: str, function: Callable[[PreTrainedModel], Any]) -> None:
    assert name not in CALLS
    CALLS[name] = function


def calling(name: str) -> Callable[[Callable[[PreTrainedModel], Any]], None]:
    return partial(call, name)


def model_of(kind: str) -> PreTrainedModel:
    """A tiny model that reads the toy tokenizer; a GPT-2 has the dropout it is trained with."""
    torch.manual_seed(0)
    if kind == "gpt2":
        config = GPT2Config(
            vocab_size=420, n_embd=D, n_layer=4, n_head=4, n_positions=64, bos_token_id=1, eos_token_id=1
        )
        return GPT2LMHeadModel(config).eval()
    model = tiny_model(kind)
    resize_vocabulary(model, 420)
    return model.eval()


def batch(model: PreTrainedModel, texts: list[str] = TEXTS) -> dict[str, torch.Tensor]:
    encoded = TOKENIZER(texts, return_tensors="pt", padding=True, return_token_type_ids=False)
    return dict(encoded.to(input_device(model)))


def logits(model: PreTrainedModel) -> torch.Tensor:
    with torch.no_grad():
        return model(**batch(model, TEXTS[:1]), return_dict=True).logits


def within(change: Callable[[PreTrainedModel], Any]) -> Callable[[PreTrainedModel], torch.Tensor]:
    """Return what a model says inside a ``with`` block."""

    def changed(model: PreTrainedModel) -> torch.Tensor:
        with change(model):
            return logits(model)

    return changed


# Surgery. Vectors and ids may lie where the user has them.
VECTORS = torch.randn(1, 2, D, generator=torch.Generator().manual_seed(1))


def plan(model: PreTrainedModel) -> list[dict[Any, Any] | None]:
    return [{1: ([1, -1], VECTORS), 2: ([0], VECTORS[:, :1].to(input_device(model)))}, None]


def generated(model: PreTrainedModel, **more: Any) -> torch.Tensor:
    torch.manual_seed(0)
    return interpret.generate_interpret(
        model, **batch(model), insert_info=plan(model), max_new_tokens=4, pad_token_id=0, **more
    )


call(
    "forward_interpret",
    lambda model: interpret.forward_interpret(
        model, **batch(model), insert_info=plan(model), output_pre_mlp_states=True, use_cache=False
    ),
)
ENOUGH = StoppingCriteriaList([MaxLengthCriteria(40)])
call("generate_interpret", partial(generated, do_sample=False))
call("generate_interpret (beams)", partial(generated, do_sample=False, num_beams=3))
call("generate_interpret (samples)", partial(generated, do_sample=True))
call(
    "greedy_search_interpret",
    lambda model: interpret.greedy_search_interpret(
        model, **batch(model), insert_info=plan(model), stopping_criteria=ENOUGH, pad_token_id=0
    ),
)


@calling("attach")
def attached(model: PreTrainedModel) -> Any:
    try:
        return interpret.attach(model).forward_interpret(**batch(model), insert_info=plan(model), return_dict=True)[0]
    finally:
        interpret.detach(model)


@calling("record")
def recorded(model: PreTrainedModel) -> Any:
    with interpret.record(model, ["resid_pre.1", "attn_out.1", "mlp_out.2", "resid_post.3"]) as seen:
        logits(model)
    return dict(seen)


# Self-interpretation.
for site, layer in (("resid_pre", 2), ("mlp_out", "same")):
    call(
        f"interpret ({site})",
        lambda model, site=site, layer=layer: interpret.interpret(
            TEXTS, TOKENIZER, TEMPLATE, model, [(2, -1), (1, 1)], bs=3, max_new_tokens=5, k=layer, site=site
        ),
    )
call(
    "interpret_vectors",
    lambda model: interpret.interpret_vectors(
        VECTORS[0].to(input_device(model)), model, TEMPLATE, TOKENIZER, max_new_tokens=5
    ),
)


@calling("interpretations")
def interpretations(model: PreTrainedModel) -> Any:
    prompts = [interpret.Prompt(f"raw_{n}", text, "raw", raw=True) for n, text in enumerate(TEXTS)]
    sources = interpret.plan_sources(model, TOKENIZER, prompts, layers="1,2", tokens="last")
    settings = interpret.selfie.Settings(new_tokens=4, prompt_output_tokens=3)
    return list(interpret.interpretations(model, TOKENIZER, sources, [TEMPLATE], settings))


# Tracing.
for noise in ("s3", "m", "t3", "u0.5"):
    call(
        f"trace ({noise})",
        lambda model, noise=noise: interpret.trace(model, TOKENIZER, PROMPT, SUBJECT, noise=noise, samples=2),
    )
OF_ATTENTION = [name for name in MEDIATORS if name != "mixer_out"]
ESTIMABLE = [name for name in OF_ATTENTION if MEDIATORS[name].site != "attention"]
for name, mediators in (("trace_mediators", [*OF_ATTENTION, "attn_knockout:itself"]), ("screen", ESTIMABLE)):
    call(
        name,
        lambda model, name=name, mediators=mediators: getattr(interpret.tracing, name)(
            model, TOKENIZER, PROMPT, SUBJECT, mediators=mediators, settings=SETTINGS
        ),
    )
call(
    "trace_by_metric",
    lambda model: interpret.tracing.trace_by_metric(
        model, TOKENIZER, PROMPT, SUBJECT, mediators=["hidden"], metrics=["logit", "rank"], settings=SETTINGS
    ),
)
for heads in (None, [(1, 0), (2, 1)]):
    call(
        f"knockout (heads {heads})",
        lambda model, heads=heads: interpret.tracing.knockout(
            model, TOKENIZER, PROMPT, SUBJECT, window=2, heads=heads, metrics=["probability", "rank"]
        ),
    )
for site in ("heads", "neurons"):
    call(
        f"trace_units ({site})",
        lambda model, site=site: interpret.tracing.trace_units(
            model, TOKENIZER, PROMPT, SUBJECT, site=site, settings=SETTINGS
        ),
    )
call(
    "trace_mediators (approximate)",
    lambda model: interpret.tracing.trace_mediators(
        model, TOKENIZER, PROMPT, SUBJECT, mediators=ESTIMABLE, settings=SETTINGS, method="approximate"
    ),
)
for rule in ("exact", "approximate", "screened"):
    call(
        f"trace_facts ({rule})",
        lambda model, rule=rule: list(
            interpret.tracing.trace_facts(model, TOKENIZER, FACTS, settings=SETTINGS, mediators=["hidden"], method=rule)
        ),
    )
for rule in ("words", "first_token"):
    call(f"known ({rule})", lambda model, rule=rule: list(interpret.facts.known(model, TOKENIZER, FACTS, rule=rule)))


# Attribution.
def attributed(model: PreTrainedModel, **more: Any) -> Any:
    return interpret.attribute(model, TOKENIZER, "I love eating", "I love eating the", **more).to_frame()


FEW_POINTS = {
    name: {"n_steps": 4}
    for name in ("integrated_gradients", "discretized_integrated_gradients", "layer_integrated_gradients")
}
FEW_POINTS |= {
    "sequential_integrated_gradients": {"n_steps": 2},
    "kernel_shap": {"n_samples": 30},
    "reagent": {"n_probes": 2, "max_rounds": 2},
}
for method in interpret.attribution.list_methods():
    call(f"attribute ({method})", partial(attributed, method=method, **FEW_POINTS.get(method, {})))
for function in interpret.attribution.list_step_functions():
    foil = {"contrast_targets": "I love eating of", "contrast": "same_context"} if "contrast" in function else {}
    call(f"attribute ({function})", partial(attributed, attributed_fn=function, step_scores=[function], **foil))
call(
    "attribute (groups)",
    partial(attributed, method="kernel_shap", groups="words", attributed_fn="answer_log_probability", n_samples=30),
)
call(
    "compare_methods",
    lambda model: interpret.attribution.compare_methods(
        model, TOKENIZER, "I love eating", "I love eating the", methods=["saliency", "occlusion"]
    ).summary(),
)
call(
    "attribute (generated)",
    lambda model: interpret.attribute(model, TOKENIZER, [PROMPT, "I love"], max_new_tokens=3).to_frame(),
)


for name in ("m2m100", "marian", "t5"):
    call(f"attribute ({name})", lambda model, name=name: of_both_sides(name, input_device(model)))


def of_both_sides(kind: str, device: torch.device) -> Any:
    """Attribute a target of an encoder-decoder, a model of its own on the device."""
    toy = toy_seq2seq(kind)
    return interpret.attribute(toy.model.to(device), toy.tokenizer, "I love pizza", "hello", **toy.languages).to_frame()


@calling("attribute (layers computed again in backward)")
def recomputed(model: PreTrainedModel) -> Any:
    with checkpointed(anatomy_of(model).layers):
        return attributed(model, method="layer_gradient_x_activation")


call(
    "locate_facts",
    lambda model: list(interpret.locating.locate_facts(model, TOKENIZER, FACTS, attributed_fn="contrast_prob_diff")),
)


# Probing.
def cached(model: PreTrainedModel) -> interpret.activations.ActivationCache:
    return interpret.activations.activation_cache(model, TOKENIZER, TEXTS, "*")


def read_from_cache(name: str, *args: Any, **more: Any) -> Callable[[PreTrainedModel], Any]:
    return lambda model: getattr(interpret.probing, name)(model, cached(model), *args, **more)


@calling("activation_cache")
def held(model: PreTrainedModel) -> Any:
    cache = cached(model)
    return {name: cache[name] for name in cache.names}


call("logit_lens", read_from_cache("logit_lens", [5], top=3))
call("identity_lens", read_from_cache("identity_lens", TOKENIZER, [5], top=3))


@calling("train_lens, load_tuned_lens, tuned_lens")
def tuned(model: PreTrainedModel) -> Any:
    with TemporaryDirectory() as folder:
        text, output = Path(folder) / "text.txt", Path(folder) / "lens"
        text.write_text(PROMPT * 20)
        interpret.probing.train_lens(model, TOKENIZER, text, output, steps=2, length=8, progress=False)
        maps = interpret.probing.load_tuned_lens(model, output)
    return interpret.probing.tuned_lens(model, cached(model), maps, [5], top=3)


call("logit_attribution", read_from_cache("logit_attribution", [5, 6]))
# The cosine of what is left over is that of rounding.
call(
    "residual_decomposition",
    lambda model: interpret.probing.residual_decomposition(model, cached(model))[["norm", "share"]],
)
call("residual_movement", read_from_cache("residual_movement"))
DIRECTION = VECTORS[0, 0]
call("writing_heads", read_from_cache("writing_heads", direction=DIRECTION))
for kind in ("query", "key", "value"):
    call(f"reading_heads ({kind})", read_from_cache("reading_heads", kind, direction=DIRECTION))
    call(f"composition_scores ({kind})", lambda model, kind=kind: interpret.probing.composition_scores(model, kind))
call("head_weights", lambda model: interpret.probing.head_weights(model, 1))
call("relational_subspaces", lambda model: interpret.probing.relational_subspaces(model, 1).values)
call("attention_patterns", lambda model: interpret.probing.attention_patterns(model, batch(model)["input_ids"].cpu()))
call("top_attended", lambda model: interpret.probing.top_attended(model, TOKENIZER, PROMPT, [(1, 2)]))
call("induction_scores", lambda model: interpret.probing.induction_scores(model, n_tokens=8, n_sequences=2))
call("information_flow", lambda model: interpret.probing.information_flow(model, TOKENIZER, PROMPT, 1, -1))
call("top_activating", lambda model: interpret.probing.top_activating(model, TOKENIZER, TEXTS, [(1, 3), (2, 4)], k=2))
call("ablated_heads", within(lambda model: interpret.probing.ablated_heads(model, [(1, 0), (2, 3)])))
call(
    "ablated_heads (mean)",
    within(lambda model: interpret.probing.ablated_heads(model, [(1, 0)], mean_of=batch(model)["input_ids"].cpu())),
)
call(
    "patched_heads",
    within(
        lambda model: interpret.probing.patched_heads(
            model, [(1, 0)], batch(model, TEXTS[:1])["input_ids"].cpu().flip(1)
        )
    ),
)
call("merged_heads", within(lambda model: interpret.probing.merged_heads(model, {(1, 0): (1, 0.5)})))
call("replaced_layers", within(lambda model: interpret.probing.replaced_layers(model, {2: 0})))
call("deleted_layers", within(lambda model: interpret.probing.deleted_layers(model, [1])))
call("permuted_layers", within(lambda model: interpret.probing.permuted_layers(model, [0, 2, 1, 3])))


@calling("KnowledgeProber")
def probed(model: PreTrainedModel) -> Any:
    prober = interpret.probing.KnowledgeProber(model, TOKENIZER)
    with prober.intervene((1, 3), scale=2.0, column=1):
        changed = logits(model)
    return changed, prober.scan(PAIRS, [0, 2], n_permutations=50), prober.polysemantic_score(1, 5)


@calling("train_lens")
def lens_trained(model: PreTrainedModel) -> Any:
    with TemporaryDirectory() as folder:
        text, run = Path(folder) / "text.txt", Path(folder) / "lens"
        text.write_text(" ".join(TEXTS * 20))
        quick = {"steps": 2, "batch_size": 1, "length": 8, "lr": 1e-5, "progress": False}
        interpret.probing.train_lens(model, TOKENIZER, text, run, **quick)
        maps = interpret.probing.load_tuned_lens(model, run)
        return interpret.probing.tuned_lens(model, cached(model), maps, top=1)


@calling("fact_page")
def fact_page(model: PreTrainedModel) -> Any:
    settings = interpret.factpages.FactSettings(samples=2, cells=("last,1",))
    page = interpret.fact_page(model, TOKENIZER, PROMPT, SUBJECT, "Paris", settings=settings)
    return page.to_frame(), page.details | {site: largest(page.details[site]["rows"]) for site in ("heads", "neurons")}


def largest(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the first three rows, which have the largest effects, in the order of their places.

    The order of rows with smaller effects depends on rounding, in a model that knows nothing.
    """
    return sorted(rows[:3], key=lambda row: (row["layer_idx"], row["token_idx"], row["unit"]))


# Control, and what a model says.
call("answers", lambda model: interpret.control.answers(model, TOKENIZER, TEXTS))
call(
    "preservation",
    lambda model: interpret.control.preservation(model, TOKENIZER, [(PROMPT, "Paris")], before=["Paris"]),
)


@calling("supervised_control")
def controlled(model: PreTrainedModel) -> Any:
    ids = TOKENIZER(PROMPT).input_ids
    with interpret.control.supervised_control(model, ids, layer=2, positions=[-1], target=DIRECTION, steps=3) as losses:
        return losses, logits(model)


@calling("reinforcement_control")
def reinforced(model: PreTrainedModel) -> Any:
    reader = interpret.control.read_answer(model, TOKENIZER, PROMPT, new_tokens=3)
    arguments = {"layer": 2, "positions": [-1], "reader": reader, "scorer": len, "steps": 2, "lr": 1e-5}
    with interpret.control.reinforcement_control(model, TOKENIZER(PROMPT).input_ids, **arguments) as steps:
        return steps


# The bench. Times are not compared.
call("profile", lambda model: interpret.bench.profile(model, TOKENIZER, TEXTS[:1], repeats=1)[["part", "layer"]])


@calling("Experiment")
def experiment(model: PreTrainedModel) -> Any:
    with TemporaryDirectory() as folder:
        exp = interpret.Experiment(model, TOKENIZER, folder=folder)
        interpret.probing.norm_figure(model, cached(model), to=Path(folder) / "norms.png")
        return len(exp.tools())
