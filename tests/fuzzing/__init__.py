"""Random samples, labels, weights and parameters for ``test_fuzz.py``, and what it demands."""
