from typing import Any


def add_parser(commands: Any) -> None: ...
def run(args: Any) -> int:
    return 0
