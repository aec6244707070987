"""The devices of tests with a case on a GPU; such tests have the marker ``gpu``, and ``make gpu`` runs them."""

import pytest
import torch

needs_a_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
DEVICES = ["cpu", pytest.param("cuda", marks=needs_a_gpu)]
