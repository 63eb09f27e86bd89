"""Runs the page's scripts on arrays: with node where it is installed, else in Chromium."""

import json
import shutil
import subprocess
from functools import cache
from pathlib import Path

import numpy as np

from runtime.page.site import BROWSER
from tests.runtime.page.browser import chromium, file_server

RUN = Path(__file__).with_name("run.js")
IN_NODE = """
import { readFile } from "node:fs/promises";
import job from "./job.js";
import { run } from "./run.js";
console.log(await run(job, async (name) => new Uint8Array(await readFile(name)).buffer));
"""
IN_CHROMIUM = """async () => {
    const [{ default: job }, { run }] = await Promise.all([import("/job.js"), import("/run.js")]);
    return run(job, async (name) => (await fetch(name)).arrayBuffer());
}"""


@cache
def node():
    """node, where it is one that knows modules; else None."""
    found = shutil.which("node")
    version = found and subprocess.run([found, "--version"], capture_output=True, text=True).stdout
    return found if version and int(version.strip("v\n").split(".")[0]) >= 18 else None


def run_script(folder, job, **given):
    """What a script makes of arrays and JSON, both by name. `job`: a module; the page's scripts are beside it."""
    for path in (*BROWSER.glob("*.js"), RUN):
        shutil.copy(path, folder)
    named = {}
    for name, value in given.items():
        if isinstance(value, np.ndarray):
            value.tofile(folder / f"{name}.bin")
            value = {"file": f"{name}.bin", "type": value.dtype.name}
        named[name] = value
    for name, text in (
        ("given.json", json.dumps(named)),
        ("job.js", job),
        ("node.js", IN_NODE),
        ("package.json", '{"type": "module"}'),
    ):
        (folder / name).write_text(text)
    if node():
        done = subprocess.run([node(), "node.js"], cwd=folder, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        found = json.loads(done.stdout)
    else:
        (folder / "index.html").write_text("")
        with chromium() as browser, file_server(folder) as address:
            page = browser.new_page()
            page.goto(address)
            found = json.loads(page.evaluate(IN_CHROMIUM))
    return {
        name: np.array(value["values"], value["type"]) if isinstance(value, dict) and "values" in value else value
        for name, value in found.items()
    }
