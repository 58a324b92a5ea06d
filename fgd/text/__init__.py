"""Text that comes from users or goes to them: strict JSON, JSON pointers, sentences, what a terminal may print."""
