"""What the README's table of families shows: its columns, and the test behind each."""

COLUMNS = {
    "surgery": "test_surgery_on_a_pass_is_the_reference_and_shown_in_hidden_states",
    "generation": "test_surgery_on_generation_is_the_reference",
    "recording": "test_recorded_halves_add_up",
    "part by part": "test_layers_run_part_by_part_are_the_model",
    "exact sweeps": "test_sweeps_are_exact",
}
