"""Command line: one module per command.

main     the parser, and the one place where an exception becomes a line and an exit code
options  the -o words of mount
common   what several commands share
mount umount info ls stat cat iomap   the commands: `add_parser(commands)` and `run(args) -> exit code`

Nothing here imports trio or pyfuse3 at the top: `--help` and errors of usage are quick and need neither.
"""
