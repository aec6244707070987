"""What install_patch.py appends to transformers/models/llama/modeling_llama.py: all from the first marker on.

The names used here (LlamaModel, LlamaForCausalLM) are those of the file it is appended to.
"""

# >>> llm-interpret: begin (added by install_patch.py; `install_patch.py restore` takes it away) >>>


def forward_interpret(self, *args, insert_info=None, output_pre_mlp_states=False, **kwargs):  # noqa: D417
    """Run `forward` with surgery.

    Args:
        *args: as for `forward`.
        insert_info: one dict (or None) a sample, `{layer: (positions, vectors[1, len(positions), hidden]), ...,
            "overlay_strength": a, "replacing_mode": "normalized" | "addition"}`; None runs the stock call.
        output_pre_mlp_states: also return the states around each MLP.
        **kwargs: as for `forward`.

    Returns:
        What `forward` returns; with `output_pre_mlp_states`, a pair of that and a list of L+1 pairs
        `(pre_mlp, residual)`. See `interpret.generation.forward_interpret`.
    """
    from ...generation.utils import _interpret_engine

    engine = _interpret_engine()
    return engine.forward_interpret(
        self, *args, insert_info=insert_info, output_pre_mlp_states=output_pre_mlp_states, **kwargs
    )


LlamaModel.forward_interpret = forward_interpret
LlamaForCausalLM.forward_interpret = forward_interpret
del forward_interpret

# <<< llm-interpret: end <<<
