"""The command line: every command, and what bad input gets."""
