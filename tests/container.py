"""Reads a Dockerfile, and carries out its steps in folders instead of images: chroot takes the place of a container.

What it knows is what our file uses; anything else is an error. Base images are Debian's, made by debootstrap.
"""

from __future__ import annotations

import fnmatch
import json
import re
import shutil
import subprocess
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

KNOWN = {*("FROM", "RUN", "COPY", "ENV", "ARG", "WORKDIR", "USER", "EXPOSE", "HEALTHCHECK", "ENTRYPOINT", "CMD")}
# The host's own settings of the network, for the steps: file → its place there.
NETWORK = {
    "/etc/resolv.conf": "etc/resolv.conf",
    "/etc/pip.conf": "etc/pip.conf",
    "/etc/ssl/certs/ca-certificates.crt": "etc/host.crt",
}


def instructions(text):
    """(name, arguments) of every instruction of a Dockerfile, in order."""
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n", " ", "\n".join(lines))
    found = [line.strip().partition(" ")[::2] for line in joined.splitlines() if line.strip()]
    assert {name for name, _ in found} <= KNOWN
    return [(name, rest.strip()) for name, rest in found]


@dataclass
class Stage:
    """A stage: its name, what it begins from, and its further instructions."""

    name: str
    base: str
    steps: list[tuple[str, str]] = field(default_factory=list)


def stages(text):
    """The stages of a Dockerfile by name, in order."""
    found = {}
    for name, rest in instructions(text):
        if name == "FROM":
            base, name = re.fullmatch(r"(\S+) AS (\S+)", rest).groups()
            found[name] = Stage(name, base)
        else:
            list(found.values())[-1].steps.append((name, rest))
    return found


def sources(rest):
    """Stage (None: the context), sources and destination of a COPY."""
    words = rest.split()
    stage = words.pop(0).partition("=")[2] if words[0].startswith("--from=") else None
    return stage, words[:-1], words[-1]


def ignored(path, patterns):
    """Whether `.dockerignore` leaves a path of the context out: the last pattern that fits it, or a folder above."""
    path, result = PurePosixPath(path), False
    for pattern in patterns:
        wanted = pattern.removeprefix("!")
        above = [path, *path.parents][:-1]
        if any(fnmatch.fnmatch(str(one), wanted) or fnmatch.fnmatch(f"/{one}", wanted) for one in above):
            result = not pattern.startswith("!")
    return result


class Images:
    """Folders in place of images, made when they are asked for.

    `root`: of the context; `folder`: where the images are; `kept`: where base images stay for the next time.
    """

    def __init__(self, root, folder, kept):
        self.root, self.folder, self.kept = root, folder, kept
        self.stages = stages((root / "Dockerfile").read_text())
        self.patterns = (root / ".dockerignore").read_text().split()
        self.settings = {}  # image → what it says of itself

    def image(self, name):
        """The folder of a stage, or of a base image."""
        if name not in self.stages:
            return self._debian(name)
        path, stage = self.folder / name, self.stages[name]
        if name in self.settings:
            return path
        base, made = self.image(stage.base), path.exists()  # of an earlier run, where the folder was kept
        start = {"ENV": {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}, "WORKDIR": "/"}
        before = self.settings.get(stage.base, start)
        self.settings[name] = {key: dict(value) if key == "ENV" else value for key, value in before.items()}
        if not made:
            subprocess.run(["cp", "-a", "--reflink=auto", base, path], check=True)
        try:
            for instruction, rest in stage.steps:
                if not made or instruction not in ("RUN", "COPY"):
                    self._step(name, path, instruction, rest)
        except BaseException:
            shutil.rmtree(path)
            raise
        return path

    def command(self, name, words, *, user=None, variables=(), before=()):
        """The command line that runs words in an image, whose processes and mounts are of their own."""
        settings, path = self.settings[name], self.image(name)
        shown = [f"{key}={value}" for key, value in (settings["ENV"] | dict(variables)).items()]
        inner = 'mount -t proc proc "$0/proc" && cd "$0" && exec "$@"'
        chroot = ["chroot", *([f"--userspec={user}"] if user else []), str(path), "env", "-i", *shown]
        cd = ["sh", "-c", 'cd "$0" && exec "$@"', settings["WORKDIR"]]
        return [*before, "sh", "-c", inner, str(path), *chroot, *cd, *words]

    def _debian(self, image):
        release = re.fullmatch(r"debian:(\w+)-slim", image)[1]
        path = self.kept / release
        if not path.exists():
            part = self.kept / f"{release}.part"
            shutil.rmtree(part, ignore_errors=True)
            subprocess.run(["debootstrap", "--variant=minbase", release, part], check=True, stdout=subprocess.DEVNULL)
            for file, place in NETWORK.items():
                if Path(file).exists():
                    shutil.copy(file, part / place)
            part.rename(path)
        return path

    def _step(self, name, path, instruction, rest):
        settings = self.settings[name]
        if instruction in ("ENV", "ARG"):
            for word in rest.split():
                key, _, value = word.partition("=")
                settings["ENV"][key] = re.sub(r"\$(\w+)", lambda found: settings["ENV"][found[1]], value)
        elif instruction == "RUN":
            unshared = ["unshare", "--mount", "--pid", "--fork"]
            words = self.command(name, ["sh", "-c", rest], variables={"PIP_CERT": "/etc/host.crt"}, before=unshared)
            done = subprocess.run(words, capture_output=True, text=True)
            assert done.returncode == 0, f"RUN {rest}\n{done.stdout[-2000:]}{done.stderr[-4000:]}"
        elif instruction == "COPY":
            self._copy(path, settings["WORKDIR"], *sources(rest))
        elif instruction == "WORKDIR":
            settings["WORKDIR"] = rest
            (path / rest[1:]).mkdir(parents=True, exist_ok=True)
        elif instruction in ("HEALTHCHECK", "ENTRYPOINT", "CMD"):
            settings[instruction] = json.loads(rest[rest.index("[") :])
        else:
            settings[instruction] = rest

    def _copy(self, path, workdir, stage, names, target):
        target = path / str(PurePosixPath(workdir) / target)[1:]
        if stage is not None:
            (name,) = names
            # Hard links: no later step changes a file in place.
            subprocess.run(["cp", "-al", self.image(stage) / name[1:], target], check=True)
            return
        for name in names:
            source = self.root / name
            for file in [source] if source.is_file() else sorted(source.rglob("*")):
                if file.is_dir() or ignored(file.relative_to(self.root).as_posix(), self.patterns):
                    continue
                copied = target / (file.name if file == source else file.relative_to(source))
                copied.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(file, copied)
