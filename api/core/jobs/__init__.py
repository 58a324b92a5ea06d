"""The verbs of jobs: requests (people), attempts (workers), sweep (anyone), over moves and queue_order."""
