"""The study of docs/study.md: its plan, its runs, what they say."""
