"""Processes of ours and how they end: children, lifeline, failpoints, the finish file, the causes of errors."""
