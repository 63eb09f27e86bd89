"""A real Triton on what `diffseg triton` writes: `tritonserver` of the package nvidia-pytriton, which needs no GPU.

`README.md` of `runtime/hosts/triton` says how to install it. Skipped where it or the clients are missing.
"""

import contextlib
import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import threading
import time
import venv
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import pytest
from skimage import data

from tests.runtime.engine.plans.conftest import write_plan
from tests.runtime.hosts.triton.test_repository import write_labels_engine

pytestmark = pytest.mark.proof
ROOT = Path(__file__).parents[4]
for package in ("pytriton", "grpc"):  # without grpc tritonclient raises no ImportError
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"needs the package {package}", allow_module_level=True)
MODULES = [pytest.importorskip(f"tritonclient.{name}") for name in ("http", "grpc")]
WHEEL = Path(importlib.util.find_spec("pytriton").origin).parent / "tritonserver"


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def backends(folder):
    """Triton's folder of backends with the one for Python, and its program for this version beside the library."""
    shutil.copytree(WHEEL / "backends" / "python", folder / "python")
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    shutil.copy(WHEEL / "python_backend_stubs" / version / "triton_python_backend_stub", folder / "python")
    return folder


def environment(folder):
    """Triton's Python is the one that comes first on PATH; it reads no PYTHONPATH. This one has our packages."""
    venv.create(folder)
    packages = sysconfig.get_path("purelib", vars={"base": str(folder)})
    others = [path for path in sys.path if path.endswith("site-packages")]
    (Path(packages) / "these.pth").write_text("\n".join([str(ROOT), *others]))
    libraries = [sysconfig.get_config_var("LIBDIR"), str(WHEEL.parents[1] / "nvidia_pytriton.libs")]
    return os.environ | {"PATH": f"{folder}/bin:{os.environ['PATH']}", "LD_LIBRARY_PATH": ":".join(libraries)}


@contextlib.contextmanager
def started(repository, folder):
    """A server on a repository, until the end of the block: ports of HTTP and gRPC, and its log."""
    ports, log = [free_port(), free_port()], folder / "triton.log"
    options = {
        "model-repository": repository,
        "backend-directory": backends(folder / "backends"),
        "http-address": "127.0.0.1",
        "grpc-address": "127.0.0.1",
        "http-port": ports[0],
        "grpc-port": ports[1],
        "allow-metrics": "false",
        "exit-on-error": "false",
        "strict-readiness": "false",
    }
    words = [str(WHEEL / "bin" / "tritonserver"), *(f"--{name}={value}" for name, value in options.items())]
    with log.open("wb") as file:
        server = subprocess.Popen(words, stdout=file, stderr=file, env=environment(folder / "env"), cwd=folder)
    try:
        end = time.monotonic() + 60
        with contextlib.closing(MODULES[0].InferenceServerClient(f"127.0.0.1:{ports[0]}")) as client:
            while True:
                assert server.poll() is None and time.monotonic() < end, log.read_text()
                with contextlib.suppress(OSError):
                    if client.is_server_ready():
                        break
                time.sleep(0.1)
        yield ports, log
        assert server.poll() is None, log.read_text()
    finally:
        server.send_signal(signal.SIGTERM)
        assert server.wait(60) == 0


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    """Files, frames, and the labels that the command line gives for them."""
    folder = tmp_path_factory.mktemp("photographs")
    frames = [
        cv2.resize(image[..., ::-1], None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)
        for image in (data.chelsea(), data.astronaut(), data.coffee(), data.rocket())
    ]
    frames.append(cv2.imread(str(ROOT / "tools" / "pictures" / "scene.png")))
    paths = [folder / f"{number}.png" for number in range(len(frames))]
    for path, frame in zip(paths, frames, strict=True):
        cv2.imwrite(str(path), frame)
    out = folder / "out"
    words = [sys.executable, "-m", "runtime.segment", *paths, "--output", out, "--save", "labels", "--device", "cpu"]
    subprocess.run(words, cwd=ROOT, check=True, capture_output=True)
    labels = [cv2.imread(str(out / f"{path.stem}_labels.png"), cv2.IMREAD_UNCHANGED) for path in paths]
    return list(zip(frames, labels, strict=True))


@pytest.fixture(scope="module")
def triton(tmp_path_factory):
    """Models `tiny`, `bright` (a graph with labels, by our runtime) and `unet` (a plan, which no CPU runs)."""
    folder = tmp_path_factory.mktemp("triton")
    engines = ["tiny", write_labels_engine(folder / "bright.onnx"), write_plan(folder, flavour="tensorrt_rtx")]
    for engine in engines:
        words = [sys.executable, "-m", "runtime.hosts.triton", str(engine), "--backend", "python"]
        words += [] if engine == "tiny" else ["--pieces", "keep"]
        subprocess.run([*words, "--output", folder / "models"], cwd=ROOT, check=True, capture_output=True)
    with started(folder / "models", folder) as found:
        yield found


def address_of(module, triton):
    return f"127.0.0.1:{triton[0][MODULES.index(module)]}"


@pytest.fixture(params=["http", "grpc"])
def asking(request, triton):
    """Module and client of a protocol."""
    module = MODULES[request.param == "grpc"]
    client = module.InferenceServerClient(address_of(module, triton))
    yield module, client
    client.close()


def infer(module, client, frames, thresholds=None, model="tiny", kind="UINT8"):
    tensors = [module.InferInput("frame", list(frames.shape), kind)]
    tensors[0].set_data_from_numpy(frames)
    if thresholds is not None:
        rows = np.array(thresholds, np.float32)
        tensors.append(module.InferInput("thresholds", list(rows.shape), "FP32"))
        tensors[1].set_data_from_numpy(rows)
    return client.infer(model, tensors)


def test_labels_are_those_of_the_command_line(asking, photographs):
    for frame, wanted in photographs:
        answer = infer(*asking, frame[None])
        labels = answer.as_numpy("labels")
        assert (labels.dtype, labels.shape) == (np.uint8, (1, *frame.shape[:2]))
        assert np.array_equal(labels[0], wanted)
        assert answer.as_numpy("segments").tolist() == [[wanted.max() + 1]]


def test_requests_that_arrive_together_are_batched(asking, photographs, triton):
    module, _ = asking
    opened = []

    def client_of(module):
        opened.append(module.InferenceServerClient(address_of(module, triton)))
        return opened[-1]

    statistics = client_of(MODULES[0])

    def counts():
        (found,) = statistics.get_inference_statistics("tiny")["model_stats"]
        return np.array([int(found[name]) for name in ("inference_count", "execution_count")])

    before, own = counts(), threading.local()

    def ask(number):
        if not hasattr(own, "client"):  # a client is for one thread
            own.client = client_of(module)
        frame, wanted = photographs[number % len(photographs)]
        return np.array_equal(infer(module, own.client, frame[None]).as_numpy("labels")[0], wanted)

    with ThreadPoolExecutor(8) as threads:
        assert all(threads.map(ask, range(20)))
    for _ in range(50):  # Triton counts a batch after it has sent the answers
        inferences, executions = counts() - before
        if inferences >= 20:
            break
        time.sleep(0.1)
    for client in opened:  # Triton waits for them at its end
        client.close()
    assert inferences == 20 and executions <= 10


def test_frames_and_thresholds_of_one_request(asking, photographs):
    frame = cv2.resize(photographs[0][0], (200, 150))
    answer = infer(*asking, np.stack([frame, frame]), [[0.2] * 3, [2.0] * 3])
    fine, coarse = answer.as_numpy("segments").ravel()
    assert fine > coarse >= 1 and answer.as_numpy("labels").max() == fine - 1


def test_a_graph_with_labels(asking):
    frames = np.random.default_rng(0).integers(0, 256, (8, 16, 24, 3), np.uint8)
    labels = infer(*asking, frames, model="bright").as_numpy("labels")
    assert np.array_equal(labels, frames.max(-1) > 100)


def test_bad_tensors_are_errors_and_the_server_goes_on(asking, photographs, triton):
    module, client = asking
    frame, wanted = photographs[0]
    bad = [
        ({"frames": frame[None].astype(np.float32), "kind": "FP32"}, "FP32"),
        ({"frames": frame}, "batch-size|shape"),
        ({"frames": frame[None, ..., :2].copy()}, "shape"),
        ({"frames": np.repeat(frame[None, :8, :8], 9, axis=0)}, "batch"),
        ({"frames": np.zeros((1, 0, 4, 3), np.uint8)}, "expected"),
        ({"frames": frame[None], "thresholds": [[0.5, 0.5]]}, "shape"),
        ({"frames": frame[None], "thresholds": [[0.5, -1, 0.5]]}, "thresholds: expected one finite number above 0"),
        ({"frames": frame[None], "thresholds": [[np.nan] * 3]}, "thresholds: expected one finite number above 0"),
        ({"frames": frame[None], "model": "none"}, "unknown model"),
    ]
    for given, text in bad:
        with pytest.raises(Exception, match=text) as caught:
            infer(module, client, **given)
        assert type(caught.value).__name__ == "InferenceServerException", given
        assert len(str(caught.value).splitlines()) == 1
    assert np.array_equal(infer(module, client, frame[None]).as_numpy("labels")[0], wanted)


def test_an_engine_that_cannot_run_is_named_in_the_log(asking, triton):
    _, client = asking
    assert client.is_model_ready("tiny") and not client.is_model_ready("unet")
    log = triton[1].read_text()
    assert "unet.plan is a plan, which runs on an NVIDIA GPU; found device 'cpu'" in log
    assert "Traceback" not in log
