"""Dynamic backdoor attacks, one published method a file."""
