"""A job as a run of an MLflow server: its settings, figures, state and files.

mlflow.py speaks with the server, names.py fits our names into its rules, runs.py says what of a job becomes what. Knows
neither the service nor torch, and needs no package of MLflow's.
"""
