"""What a GPU should show: tests, exactness and speed, in one run without network; see ../README.md.

``python -m benchmarks.gpu`` runs it, on a CPU with small models. ``cases.py`` lists the cases; to add one, write a
function in ``exact.py`` or ``speed.py`` and add its name there.
"""
