"""`diffseg page`: what it writes, what it fetches, and what it refuses in one line. No network is used."""

import base64
import hashlib
import io
import json
import os
import re
import shutil
import tarfile
from dataclasses import replace
from types import SimpleNamespace

import pytest
from typer.testing import CliRunner

from runtime.engine.registry import EMBEDDED
from runtime.engine.spec import EngineSpec, sidecar_path
from runtime.errors import DiffSegError
from runtime.page import package, site
from runtime.page.__main__ import app
from tests.runtime.page.browser import file_server

pytest.importorskip("onnxruntime")
WEB = {site.SCRIPT: b"export const env = {};", site.WASM: b"\0asm" + bytes(1000)}


def packed(files):
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w:gz") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(f"package/dist/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return data.getvalue()


@pytest.fixture
def tarball(tmp_path, monkeypatch):
    """A stand-in for onnxruntime-web, and its hash in place of the real one's; the cache is empty."""
    data = packed(WEB)
    digest = base64.b64encode(hashlib.sha512(data).digest()).decode()
    monkeypatch.setattr(package, "INTEGRITY", f"sha512-{digest}")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = tmp_path / "web.tgz"
    path.write_bytes(data)
    return path


@pytest.fixture
def quick(tmp_path, monkeypatch):
    """Nothing is opened: the description of tiny, and a short file in its place."""
    (tmp_path / "engine").mkdir()
    path = tmp_path / "engine" / "tiny.onnx"
    path.write_bytes(bytes(1000))
    spec = EngineSpec.from_json(sidecar_path(EMBEDDED).read_text(), "tiny")
    monkeypatch.setattr(site, "open_engine", lambda *arguments, **options: SimpleNamespace(spec=spec, path=path))
    return spec


def page(*arguments):
    """Exit status and what was printed. Nothing may be a traceback."""
    done = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done.exit_code, done.output


def refused(*arguments):
    """The one line of a command that fails."""
    status, printed = page(*arguments)
    assert status == 1 and printed.startswith("error: ") and printed.count("\n") == 1, printed
    return printed


@pytest.mark.slow
def test_a_site_has_all_that_it_needs_and_names_no_other_host(tarball, tmp_path):
    folder = tmp_path / "deep" / "site"
    status, printed = page("--output", folder, "--package", tarball)
    assert status == 0, printed
    found = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert found == {*json.loads((folder / site.MARK).read_text())["files"], site.MARK}
    assert (folder / "engine" / "tiny.onnx").read_bytes() == EMBEDDED.read_bytes()
    assert (folder / "onnxruntime" / site.WASM).read_bytes() == WEB[site.WASM]
    assert (
        "MIT" in (folder / "onnxruntime" / "LICENSE").read_text() and "Microsoft" in (folder / "NOTICE.txt").read_text()
    )
    index = (folder / "index.html").read_text()
    assert "Content-Security-Policy" in index and "service.js" not in index
    scripts = {name for name in found if name.endswith((".js", ".html", ".css", ".svg")) and "onnxruntime" not in name}
    for name in scripts:
        text = (folder / name).read_text()
        assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", text), name
        for target in re.findall(r'(?:from|src=|href=) ?"(\.?[\w./-]+)"', text):
            assert ((folder / name).parent / target).is_file(), f"{name} needs {target}"
    about = json.loads((folder / "engine" / "engine.json").read_text())
    others = re.compile("LICENSE|NOTICE|Third|sample|json")
    loaded = sum((folder / name).stat().st_size for name in found if not others.search(name))
    assert f"{loaded / 1e6:.1f} MB" in about["where"] and f"{loaded / 1e6:.1f} MB" in printed
    assert (
        about["bytes"] == EMBEDDED.stat().st_size
        and len(about["anchors"]) == 256
        and sum(about["ratios"]) == pytest.approx(1)
    )


def test_an_older_site_is_replaced_and_what_others_added_stays(tarball, quick, tmp_path):
    folder = tmp_path / "site"
    assert page("--output", folder, "--package", tarball)[0] == 0
    mark = folder / site.MARK
    (folder / "CNAME").write_text("example.org")
    (folder / "old.js").write_text("")
    data = json.loads(mark.read_text())
    mark.write_text(json.dumps(data | {"files": [*data["files"], "old.js", "../web.tgz"]}))
    assert page("--output", folder, "--package", tarball)[0] == 0
    assert (folder / "CNAME").exists() and not (folder / "old.js").exists() and tarball.exists()
    assert not list(folder.rglob("*.part"))


@pytest.mark.parametrize("files", [3, [["x"], 3, None, "\0", "", ".", "page", "/etc/nothing"]])
def test_a_damaged_list_of_an_older_site_harms_nobody(tarball, quick, tmp_path, files):
    folder = tmp_path / "site"
    folder.mkdir()
    (folder / site.MARK).write_text(json.dumps({"software": "diffseg", "files": files}))
    assert page("--output", folder, "--package", tarball)[0] == 0
    (folder / site.MARK).write_text('{"software": "diffseg", "files": ' + "[" * 100_000)
    assert page("--output", folder, "--package", tarball)[0] == 0
    assert "index.html" in json.loads((folder / site.MARK).read_text())["files"]


def test_a_name_that_no_address_can_have_is_refused(tarball, quick, tmp_path, monkeypatch):
    found = SimpleNamespace(spec=quick, path=tmp_path / os.fsdecode(b"\xff.onnx"))
    monkeypatch.setattr(site, "open_engine", lambda *arguments, **options: found)
    assert r"\udcff.onnx: expected a name that" in refused("--output", tmp_path / "site", "--package", tarball)


def test_a_site_reaches_no_other_folder_by_links(tarball, quick, tmp_path):
    folder, other = tmp_path / "site", tmp_path / "other"
    other.mkdir()
    (other / "page.js").write_text("not ours")
    folder.mkdir()
    (folder / "away").symlink_to(other)
    (folder / site.MARK).write_text(json.dumps({"software": "diffseg", "files": ["away/page.js"]}))
    assert page("--output", folder, "--package", tarball)[0] == 0
    shutil.rmtree(folder / "page")
    (folder / "page").symlink_to(other)
    assert "found a link at page; remove it" in refused("--output", folder, "--package", tarball)
    assert [(path.name, path.read_text()) for path in other.iterdir()] == [("page.js", "not ours")]


def test_folders_that_a_site_is_not_written_to(tarball, tmp_path):
    other = tmp_path / "photos"
    other.mkdir()
    (other / "cat.jpg").write_bytes(b"cat")
    assert "has files of others" in refused("--output", other, "--package", tarball)
    assert [path.name for path in other.iterdir()] == ["cat.jpg"]
    assert "found a file" in refused("--output", other / "cat.jpg", "--package", tarball)
    assert "cannot be written" in refused("--output", other / "cat.jpg" / "site", "--package", tarball)
    assert page("--package", tarball)[0] == 2


def test_a_folder_that_fills_up_is_an_error_and_can_be_written_again(tarball, quick, tmp_path, monkeypatch):
    write, calls = site.write_atomically, []

    def full(path, data):
        calls.append(path)
        if len(calls) == 4:
            raise OSError(28, "No space left on device")
        write(path, data)

    monkeypatch.setattr(site, "write_atomically", full)
    assert "No space left" in refused("--output", tmp_path / "site", "--package", tarball)
    monkeypatch.setattr(site, "write_atomically", write)
    assert page("--output", tmp_path / "site", "--package", tarball)[0] == 0


def test_the_package_is_fetched_once_and_its_hash_is_checked(tarball, tmp_path):
    folder = tmp_path / "registry" / package.NAME / "-"
    folder.mkdir(parents=True)
    (folder / package.FILE).write_bytes(tarball.read_bytes())
    with file_server(tmp_path / "registry") as address:
        assert package.read_package(f"{address}/") == tarball.read_bytes()
    gone = "http://127.0.0.1:9/"
    assert package.read_package(gone) == tarball.read_bytes()
    kept = tmp_path / "cache" / "diffseg" / "npm" / package.FILE
    kept.write_bytes(kept.read_bytes()[:-1])
    with pytest.raises(DiffSegError, match=r"cannot fetch .*npm pack onnxruntime-web@.*--package"):
        package.read_package(gone)
    (folder / package.FILE).write_bytes(b"something else")
    with (
        file_server(tmp_path / "registry") as address,
        pytest.raises(DiffSegError, match=r"expected .*hash sha512-.*found sha512-"),
    ):
        package.read_package(address)
    assert kept.stat().st_size == len(tarball.read_bytes()) - 1


def test_packages_that_are_refused(tarball, quick, tmp_path):
    output = tmp_path / "site"
    for registry, said in (
        ("http://127.0.0.1:9/", "cannot fetch"),
        ("file:///etc", "begins with https://"),
        ("", "begins with"),
    ):
        assert said in refused("--output", output, "--registry", registry)
    assert "cannot be read" in refused("--output", output, "--package", tmp_path / "none.tgz")
    assert "cannot be read" in refused("--output", output, "--package", tmp_path)
    (tmp_path / "other.tgz").write_bytes(b"other")
    assert "with the hash" in refused("--output", output, "--package", tmp_path / "other.tgz")
    assert not output.exists() or not list(output.iterdir())


def test_files_that_are_no_engines(tarball, tmp_path):
    arguments = "--output", tmp_path / "site", "--package", tarball, "--engine"
    assert "a browser runs ONNX engines alone" in refused(*arguments, tmp_path / "sd.plan")
    assert "no engine" in refused(*arguments, tmp_path / "none.onnx")
    (tmp_path / "text.onnx").write_text("no engine")
    refused(*arguments, tmp_path / "text.onnx")


def test_engines_that_a_browser_cannot_use(tarball, quick, tmp_path, monkeypatch):
    arguments = "--output", tmp_path / "site", "--package", tarball, "--engine"
    path = tmp_path / "other.onnx"
    path.write_bytes(b"")
    for changes, said in (
        ({"head": "labels"}, "has the head labels, but the page merges attention itself.*--head attention"),
        ({"precision": "fp16"}, "has the precision fp16.*--compact"),
        ({"batch": 4}, "the batch 4"),
        ({"input": "float-nchw-rgb"}, r"takes float32 \[B, 3.*; expected uint8 \[B"),
        ({"solver": "ncut"}, "has the solver ncut; expected merge.*--head attention(?!.*ncut)"),
    ):
        other = SimpleNamespace(spec=replace(quick, **changes), path=path)
        monkeypatch.setattr(site, "open_engine", lambda *arguments, other=other, **options: other)
        assert re.search(said, refused(*arguments, path))
    monkeypatch.setattr(site, "open_engine", lambda *arguments, **options: SimpleNamespace(spec=quick, path=path))
    monkeypatch.setattr(site, "external_data", lambda path: ["weights"])
    assert "too large for a browser" in refused(*arguments, path)
    assert not list((tmp_path / "site").iterdir())


def test_anchors_are_no_more_than_the_tokens(quick):
    finest = quick.levels[0]
    about = site.describe(site.Source(replace(quick, grid=64), "a.onnx", b""))
    assert len(about["anchors"]) == min(finest.height, finest.width) ** 2
