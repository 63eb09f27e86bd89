"""What a service is set to, and the errors that carry a status of HTTP."""

from __future__ import annotations

from dataclasses import dataclass

from runtime.errors import DiffSegError
from runtime.page.shared import MOST_BYTES

GONE = 499  # the status in the log of a request whose client went away
LOOPBACK = ("127.0.0.1", "localhost", "::1")


class Refused(DiffSegError):
    """A request that is answered with a status other than 200 and one line.

    `status`: of HTTP. `headers`: to add to the answer, as Retry-After.
    """

    def __init__(self, status: int, text: str, **headers: str) -> None:
        super().__init__(text)
        self.status = status
        self.headers = {name.replace("_", "-"): value for name, value in headers.items()}


@dataclass(frozen=True, slots=True)
class Settings:
    """Limits of a service, and who may use it.

    Attributes:
        host: the address it listens on.
        token: who has none is refused; empty: nobody needs one.
        origins: other sites whose pages may use it.
        queue: frames that may be in the service at once, waiting or in work.
        seconds: time limit of a request, from its last byte to its answer.
        slowest: seconds that the head or the body of a request may take to arrive, and an answer to be read.
        most_bytes: of a request's body. All bodies that are in memory may have four times as many.
        most_kept: pictures whose attention is kept for the page.
        clips: clips that may be open at once.
        idle: seconds after which a clip without frames is closed, and a kept picture forgotten.
    """

    host: str = "127.0.0.1"
    token: str = ""
    origins: tuple[str, ...] = ()
    queue: int = 64
    seconds: float = 60
    slowest: float = 30
    most_bytes: int = MOST_BYTES
    most_kept: int = 16
    clips: int = 8
    idle: float = 900
