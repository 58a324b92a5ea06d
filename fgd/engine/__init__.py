"""Training: distill.py (student + methods), loop.py (the order of things), evaluate.py, checkpoint.py, export.py."""
