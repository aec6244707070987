"""What install_patch.py appends to transformers/generation/utils.py: everything from the first marker on.

The names used here (GenerationMixin) are those of the file it is appended to.
"""

# >>> llm-interpret: begin (added by install_patch.py; `install_patch.py restore` takes it away) >>>


def _interpret_engine():
    """Import the engine of llm-interpret when it is first needed, or say what stands in its way."""
    from importlib.util import find_spec

    try:
        # Another library's package is called `interpret` too; these names only ours has.
        from interpret import generation
        from interpret.generation import forward_interpret, generate_interpret, greedy_search_interpret  # noqa: F401
    except ImportError as error:
        if (error.name or "").partition(".")[0] != "interpret":
            raise  # the engine is there and names what it lacks
        spec = find_spec("interpret")
        found = "there is none"
        if spec is not None:
            found = f"the one found is not it: {spec.origin or list(spec.submodule_search_locations)}"
        raise ImportError(
            f"this method needs the package `interpret` of llm-interpret, and {found}. Run `pip install "
            "llm-interpret` in an environment that holds no other `interpret` (interpret-core installs one).",
            name="interpret",
        ) from error
    return generation


def generate_interpret(self, inputs=None, *args, insert_info=None, **kwargs):  # noqa: D417
    """Run `generate` with surgery on the prompts.

    Args:
        inputs: as for `generate`.
        *args: as for `generate`.
        insert_info: one dict (or None) a prompt, `{layer: (positions, vectors[1, len(positions), hidden]), ...,
            "overlay_strength": a, "replacing_mode": "normalized" | "addition"}`; None runs the stock call.
        **kwargs: as for `generate`.

    Returns:
        What `generate` returns. See `interpret.generation.generate_interpret`.
    """
    return _interpret_engine().generate_interpret(self, inputs, *args, insert_info=insert_info, **kwargs)


def greedy_search_interpret(self, input_ids, *args, insert_info=None, **kwargs):  # noqa: D417
    """Run `greedy_search` with surgery on the prompts.

    Args:
        input_ids: as for `greedy_search`.
        *args: as for `greedy_search`.
        insert_info: one dict (or None) a prompt, as for `generate_interpret`; None runs the stock call.
        **kwargs: as for `greedy_search`.

    Returns:
        What `greedy_search` returns. See `interpret.generation.greedy_search_interpret`.
    """
    return _interpret_engine().greedy_search_interpret(self, input_ids, *args, insert_info=insert_info, **kwargs)


GenerationMixin.generate_interpret = generate_interpret
GenerationMixin.greedy_search_interpret = greedy_search_interpret
del generate_interpret, greedy_search_interpret

# <<< llm-interpret: end <<<
