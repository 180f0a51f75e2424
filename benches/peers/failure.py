"""What ends a run: a cause, and what to do next."""


class Failure(Exception):
    """Printed as two lines: the cause, and the next command."""

    def __init__(self, cause: str, next_step: str) -> None:
        super().__init__(cause)
        self.cause = cause
        self.next_step = next_step

    def __str__(self) -> str:
        return f"peers: {self.cause}\nnext: {self.next_step}"
