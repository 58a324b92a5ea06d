"""Training: loop.py (the order) over prepare, step, meter, saver, result; distill.py (student and methods)."""
