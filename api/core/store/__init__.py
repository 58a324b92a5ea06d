"""Where bytes live: names.py says what a store promises, local.py and s3.py keep it, open.py chooses."""
