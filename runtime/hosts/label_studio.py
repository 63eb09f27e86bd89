"""A backend for Label Studio: `diffseg label-studio` answers its HTTP requests for predictions.

GET /health; POST /setup, which names the model; POST /predict, from tasks and the project's labelling configuration to
a result for each task: a brush mask for each segment.
"""

from __future__ import annotations

import base64
import json
import os
import threading
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import parse_qs, unquote, urlsplit
from xml.etree import ElementTree

import typer

from runtime import __version__
from runtime.errors import DiffSegError, as_one_line
from runtime.refine.registry import DEFAULT_PIECES
from runtime.terminal import one_line_errors, run

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from runtime.segmenter import Segmenter

MODEL = f"diffseg {__version__}"
MOST_BYTES = 64 << 20  # of a request, and of a picture
SECONDS = 30  # to wait for a picture
_LENGTHS = (3, 4, 8, 16)  # bits in which the brush format may tell the length of a run


class NoSuchPath(DiffSegError):
    """A request for what this backend does not have."""


class Backend:
    """Predictions of a Segmenter, one at a time.

    `folder`: where pictures that tasks name by path are (Label Studio's `/data/local-files/?d=`, and its uploads);
    None: only pictures by URL and `data:`. `host`, `token`: of Label Studio, for paths on it.
    """

    def __init__(
        self, segmenter: Segmenter, folder: Path | None = None, host: str = "", token: str = "", label: str = "segment"
    ) -> None:
        self._segmenter, self._folder, self._host, self._token = segmenter, folder, host.rstrip("/"), token
        self._label = label
        self._alone = threading.Lock()

    def answer(self, method: str, path: str, body: Any) -> dict[str, Any]:
        """The answer to a request; `body` is its JSON. Raises DiffSegError where it is invalid; NoSuchPath."""
        where = urlsplit(path).path.rstrip("/") or "/health"
        if method == "GET" and where == "/health":
            return {"status": "UP", "model_class": "DiffSeg"}
        if method == "POST" and where == "/setup":
            return {"model_version": MODEL}
        if method == "POST" and where == "/webhook":
            return {}
        if method == "POST" and where == "/predict":
            return self.predict(body)
        raise NoSuchPath(f"expected /health, /setup or /predict, found {method} {where}")

    def predict(self, body: Any) -> dict[str, Any]:
        """`tasks` and `label_config` → `results`, one for each task. Raises DiffSegError where they are invalid."""
        tasks = body.get("tasks") if isinstance(body, dict) else None
        if not isinstance(tasks, list) or not all(isinstance(task, dict) for task in tasks):
            raise DiffSegError('expected {"tasks": [...], "label_config": "..."}, found no list of tasks')
        control, image, key, label = self._controls(str(body.get("label_config") or ""))
        return {"results": [self._result(task, control, image, key, label) for task in tasks]}

    def _controls(self, config: str) -> tuple[str, str, str, str]:
        """Names of the brush and the image, the image's key in a task, and the label, of a labelling configuration."""
        try:
            root = ElementTree.fromstring(config)
        except ElementTree.ParseError as error:
            raise DiffSegError(f"label_config: expected Label Studio's XML, found {error}") from None
        for brush in root.iter("BrushLabels"):
            names = [str(one.get("value")) for one in brush.iter("Label")]
            for picture in root.iter("Image"):
                if picture.get("name") == brush.get("toName") and names:
                    label = self._label if self._label in names else names[0]
                    key = str(picture.get("value", "")).lstrip("$")
                    return str(brush.get("name")), str(picture.get("name")), key, label
        raise DiffSegError(
            "label_config: expected <BrushLabels> with a <Label> for an <Image>, found none; add them to the project"
        )

    def _result(self, task: dict[str, Any], control: str, image: str, key: str, label: str) -> dict[str, Any]:
        from runtime.frames.decode import decode_frame

        address = task.get("data", {}).get(key) if isinstance(task.get("data"), dict) else None
        if not isinstance(address, str):
            raise DiffSegError(f"task {task.get('id')}: expected data.{key}, the address of a picture, found none")
        frame = decode_frame(self._read(address), address[:200])
        with self._alone:
            result = self._segmenter(frame)
        height, width = result.labels.shape
        found = [
            {
                "id": f"segment{segment.index}",
                "from_name": control,
                "to_name": image,
                "type": "brushlabels",
                "original_width": width,
                "original_height": height,
                "image_rotation": 0,
                "value": {"format": "rle", "rle": encode_brush(result.mask(segment.index)), "brushlabels": [label]},
            }
            for segment in result.segments
        ]
        return {"result": found, "score": 1.0, "model_version": MODEL}

    def _read(self, address: str) -> bytes:
        """The encoded picture. Raises DiffSegError where it cannot be read, or this backend may not read it."""
        try:
            parts = urlsplit(address)
            if parts.scheme == "data":
                return base64.b64decode(parts.path.partition(",")[2], validate=True)
            if self._folder is not None and not parts.scheme:
                below = parse_qs(parts.query)["d"][0] if "d" in parse_qs(parts.query) else unquote(parts.path)
                root = self._folder.resolve()
                found = (root / below.removeprefix("/data/upload/").lstrip("/")).resolve()
                if root in found.parents and found.is_file() and found.stat().st_size <= MOST_BYTES:
                    return found.read_bytes()
            if not parts.scheme and self._host:
                address = f"{self._host}/{address.lstrip('/')}"
                parts = urlsplit(address)
            if parts.scheme in ("http", "https"):
                request = urllib.request.Request(address)
                if self._token and self._host and address.startswith(f"{self._host}/"):
                    request.add_unredirected_header("Authorization", f"Token {self._token}")
                with urllib.request.urlopen(request, timeout=SECONDS) as answer:
                    data: bytes = answer.read(MOST_BYTES + 1)
                if len(data) <= MOST_BYTES:
                    return data
        except (OSError, ValueError) as error:
            raise DiffSegError(f"{address[:200]}: cannot be read ({error})") from None
        raise DiffSegError(
            f"{address[:200]}: cannot be read; expected a URL, a data: URL, or a file below --folder of at most "
            f"{MOST_BYTES >> 20} MB"
        )


def encode_brush(mask: NDArray[np.bool_]) -> list[int]:
    """A mask bool [H, W] as Label Studio's brush RLE: bytes of a stream of bits.

    The stream has the number of values (four for each pixel: R, G, B and alpha, 255 in the mask and 0 elsewhere) in 32
    bits, their width less 1 in 5, four widths of lengths less 1 in 4 each; then runs: a 1, which width of length in 2
    bits, the length less 1, and the value.
    """
    import numpy as np

    flat = mask.ravel()
    ends = np.append(np.flatnonzero(flat[1:] != flat[:-1]) + 1, len(flat))
    lengths = np.diff(ends, prepend=0) * 4
    bits = [f"{4 * len(flat):032b}", f"{8 - 1:05b}", *(f"{one - 1:04b}" for one in _LENGTHS)]
    inside = bool(flat[0])
    for length in lengths.tolist():
        value = f"{255 * inside:08b}"
        while length:
            part = min(length, 1 << _LENGTHS[-1])
            index = next(index for index, width in enumerate(_LENGTHS) if part <= 1 << width)
            bits.append(f"1{index:02b}{part - 1:0{_LENGTHS[index]}b}{value}")
            length -= part
        inside = not inside
    stream = "".join(bits)
    stream += "0" * (-len(stream) % 8)
    return list(int(stream, 2).to_bytes(len(stream) // 8, "big"))


def server(backend: Backend, host: str, port: int) -> ThreadingHTTPServer:
    """A server that answers with a backend, not yet started. Raises OSError where the port is taken."""

    class Handler(BaseHTTPRequestHandler):
        timeout = SECONDS  # of a client that sends nothing, or does not read

        def do_GET(self) -> None:
            self._answer("GET", None)

        def do_POST(self) -> None:
            try:
                length = int(self.headers.get("Content-Length", ""))
                if not 0 <= length <= MOST_BYTES:
                    raise ValueError
                body = json.loads(self.rfile.read(length) or b"null")
            except (ValueError, RecursionError):
                self.close_connection = True
                self._send(400, {"error": f"expected JSON of at most {MOST_BYTES >> 20} MB"})
                return
            self._answer("POST", body)

        def _answer(self, method: str, body: Any) -> None:
            try:
                self._send(200, backend.answer(method, self.path, body))
            except NoSuchPath as error:
                self._send(404, {"error": str(error)})
            except DiffSegError as error:
                self._send(400, {"error": str(error)})
            except Exception as error:
                self._send(500, {"error": str(as_one_line(error, self.path))})

        def _send(self, status: int, answer: dict[str, Any]) -> None:
            data = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, format: str, *arguments: Any) -> None:
            """Nothing: Label Studio has a log of its own."""

    return ThreadingHTTPServer((host, port), Handler)


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)


@app.command()
def main(
    engine: Annotated[Path | None, typer.Option(help="Engine file; the embedded default if left out.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, or cuda[:N].")] = "auto",
    threshold: Annotated[float | None, typer.Option(help="KL threshold; the engine's own if left out.")] = None,
    refine: Annotated[str, typer.Option(help="As of diffseg segment.")] = "none",
    min_area: Annotated[float, typer.Option(help="As of diffseg segment.")] = 0,
    pieces: Annotated[str, typer.Option(help="As of diffseg segment.")] = DEFAULT_PIECES,
    label: Annotated[str, typer.Option(help="The brush's label to use; its first one if it has none of that name.")] = (
        "segment"
    ),
    folder: Annotated[Path | None, typer.Option(help="Where pictures are that tasks name by a path.")] = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0 takes a free one.")] = 9090,
) -> None:
    """Answer Label Studio's requests for predictions with the segments of its pictures, as brush masks.

    LABEL_STUDIO_URL and LABEL_STUDIO_API_KEY in the environment let it read pictures that Label Studio has.
    """
    with one_line_errors():
        from runtime.segmenter import Segmenter

        segmenter = Segmenter.open(
            engine, device, thresholds=threshold, refine=refine, min_area=min_area, pieces=pieces
        )
        studio, key = os.environ.get("LABEL_STUDIO_URL", ""), os.environ.get("LABEL_STUDIO_API_KEY", "")
        try:
            listening = server(Backend(segmenter, folder, studio, key, label), host, port)
        except OSError as error:
            raise DiffSegError(f"--port {port}: cannot listen on {host} ({error.strerror}); choose another") from None
        with listening:
            typer.echo(f"listening on http://{host}:{listening.server_address[1]}", err=True)
            listening.serve_forever()


if __name__ == "__main__":
    run(app, "python -m runtime.hosts.label_studio", "cpu")
