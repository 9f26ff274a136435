import contextlib
import gzip
import hashlib
import http.server
import io
import re
import resource
import shutil
import sys
import threading
import time
from pathlib import Path
from typing import NamedTuple

import huggingface_hub
import pytest

from ckpt_convert import __main__ as command_line
from ckpt_convert import downloads, sources
from styleclip_jax.errors import InputError
from styleclip_jax.io.checkpoints import load_clip
from styleclip_jax.io.text import load_tokenizer

CONTENT = bytes(range(256)) * 20_000
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Server:
    """A server on the loopback interface; tests change its responses.

    Attributes:
        files: Contents by path.
        cuts: Number of bytes after which each of the next connections ends.
        ranges: Whether parts of files can be requested.
        length: Whether responses state their length.
        etag: Identifies the files' version.
        status: HTTP status of all responses, instead of files.
        content_type: Content type of all files.
        requests: The path and the range of each request.
    """

    def __init__(self):
        self.files = {"/a.pkl": CONTENT}
        self.cuts: list[int] = []
        self.ranges = True
        self.length = True
        self.etag: str | None = '"1"'
        self.status: int | None = None
        self.content_type = "application/octet-stream"
        self.requests: list[tuple[str, str | None]] = []
        answers = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                answers.answer(self)

            def log_message(self, *_):
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self._server.server_port}"
        # Ends within 0.01 s; the default is 0.5 s.
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def answer(self, request):
        wanted = request.headers.get("Range")
        self.requests.append((request.path, wanted))
        content = self.files.get(request.path)
        if self.status or content is None:
            request.send_error(self.status or 404)
            return
        same = request.headers.get("If-Range") in (None, self.etag)
        first = int(wanted.removeprefix("bytes=")[:-1]) if wanted and self.ranges and same else 0
        if first >= len(content):
            request.send_response(416)
            request.send_header("Content-Range", f"bytes */{len(content)}")
            request.end_headers()
            return
        request.send_response(206 if first else 200)
        if first:
            request.send_header("Content-Range", f"bytes {first}-{len(content) - 1}/{len(content)}")
        if self.etag:
            request.send_header("ETag", self.etag)
        request.send_header("Content-Type", self.content_type)
        if self.length:
            request.send_header("Content-Length", str(len(content) - first))
        request.end_headers()
        end = self.cuts.pop(0) if self.cuts else len(content)
        request.wfile.write(content[first:end])

    def close(self):
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def server(monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with contextlib.closing(Server()) as running:
        yield running


class Fetched(NamedTuple):
    path: Path

    def __call__(self, server, sha256=None):
        downloads.download(f"{server.address}/a.pkl", self.path, sha256)
        assert self.path.read_bytes() == server.files["/a.pkl"]
        assert [path.name for path in self.path.parent.iterdir()] == [self.path.name]


@pytest.fixture
def fetch(tmp_path):
    """Downloads, and expects the right file and no other files."""
    return Fetched(tmp_path / "cache" / "a.pkl")


def test_a_file_is_downloaded_once(server, fetch):
    fetch(server, SHA256)
    fetch(server, SHA256)
    assert server.requests == [("/a.pkl", None)]


@pytest.mark.parametrize("etag", ['"1"', None])
def test_a_dropped_connection_is_resumed_immediately(server, fetch, etag):
    server.etag, server.cuts = etag, [1_000_000, 3_000_000]
    fetch(server, SHA256)
    assert [part for _, part in server.requests] == [None, "bytes=1000000-", "bytes=3000000-"]


def test_an_interrupted_download_is_resumed_by_the_next_one(server, fetch, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(downloads.tqdm, "update", interrupted)
        fetch(server)
    written = (fetch.path.parent / "a.pkl.part").stat().st_size
    assert 0 < written < len(CONTENT)
    fetch(server)
    assert server.requests[1:] == [("/a.pkl", f"bytes={written}-")]


def test_a_server_that_drops_every_connection_is_given_up_and_resumed_later(server, fetch):
    server.cuts = [1_000_000, 1_000_000, 1_000_000]
    with pytest.raises(
        InputError, match="ended after 1000000 of 5120000 bytes; run the same command"
    ):
        fetch(server)
    server.cuts = []
    fetch(server)
    assert server.requests[-1] == ("/a.pkl", "bytes=1000000-")


def test_a_server_without_ranges_sends_the_whole_file_again(server, fetch):
    server.ranges, server.cuts = False, [1_000_000]
    fetch(server, SHA256)


def test_a_file_that_changed_meanwhile_is_downloaded_as_a_whole(server, fetch):
    server.cuts = [1_000_000, 1_000_000]
    with pytest.raises(InputError, match="cannot be downloaded"):
        fetch(server)
    server.files["/a.pkl"], server.etag = CONTENT[::-1], '"2"'
    fetch(server)


@pytest.mark.parametrize("etag", [None, 'W/"1"'])
def test_a_part_that_nothing_identifies_is_not_resumed(server, fetch, etag):
    server.etag, server.cuts = etag, [1_000_000]
    fetch(server)
    assert server.requests == [("/a.pkl", None)] * 2


@pytest.mark.parametrize("rest", [b"", b"more"])
def test_a_part_that_is_the_whole_or_more_needs_no_range(server, fetch, rest):
    fetch.path.parent.mkdir()
    fetch.path.with_name("a.pkl.part").write_bytes(CONTENT + rest)
    fetch(server, SHA256)
    assert len(server.requests) == (2 if rest else 1)


def test_a_file_other_than_the_publishers_is_refused(server, fetch):
    server.files["/a.pkl"] = CONTENT[:-1] + b"x"
    with pytest.raises(InputError, match=f"not the published file.*expected {SHA256}"):
        fetch(server, SHA256)
    assert not list(fetch.path.parent.iterdir())


def test_a_download_that_was_damaged_later_is_refused(server, fetch):
    fetch(server, SHA256)
    fetch.path.write_bytes(CONTENT[:-1])
    with pytest.raises(InputError, match=r"is damaged: .* remove it"):
        downloads.download(f"{server.address}/a.pkl", fetch.path, SHA256)


@pytest.mark.parametrize("status", [404, 403, 503])
def test_an_error_of_the_server_is_reported(server, fetch, status):
    server.status = status
    with pytest.raises(InputError, match=rf"a\.pkl cannot be downloaded: HTTP Error {status}"):
        fetch(server)
    assert len(server.requests) == 1
    assert not list(fetch.path.parent.iterdir())


def test_a_web_page_is_refused(server, fetch):
    server.content_type = "text/html; charset=utf-8"
    with pytest.raises(InputError, match="is a web page"):
        fetch(server)


@pytest.mark.parametrize("address", ["http://127.0.0.1:1/a", "http://a:b/", "http://[", "http://"])
def test_an_unreachable_address_is_reported(fetch, address):
    with pytest.raises(InputError, match="cannot be downloaded"):
        downloads.download(address, fetch.path)


def test_a_server_that_hangs_is_given_up(server, fetch, monkeypatch):
    monkeypatch.setattr(downloads, "TIMEOUT", 0.1)
    monkeypatch.setattr(server, "answer", lambda _: time.sleep(0.5))
    with pytest.raises(InputError, match="timed out; run the same command"):
        fetch(server)


def test_a_disk_with_too_little_space_is_reported_beforehand(server, fetch, monkeypatch):
    usage = shutil.disk_usage(fetch.path.parent.parent)._replace(free=2**20)
    with monkeypatch.context() as patched:
        patched.setattr(shutil, "disk_usage", lambda _: usage)
        with pytest.raises(OSError, match=r"part cannot be written: it needs 5 MiB, but 1 MiB"):
            fetch(server)
    fetch(server)


def test_a_full_disk_is_reported_and_the_download_resumed(server, fetch):
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2_000_000, limit[1]))
    try:
        with pytest.raises(OSError, match=r"part cannot be written \(File too large\)"):
            fetch(server)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    fetch(server)
    assert server.requests[1:] == [("/a.pkl", "bytes=2000000-")]


class Terminal(io.StringIO):
    """Standard error of a terminal, where bars are shown."""

    def isatty(self):
        return True


def test_a_bar_shows_how_much_of_the_file_is_downloaded(server, fetch, monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    server.cuts = [2_000_000]
    fetch(server)
    bars = re.findall(r"a\.pkl: +(\d+)%\|.*?\| (\S+)/5\.12M", terminal.getvalue())
    assert bars[0] == ("0", "0.00") and bars[-1] == ("100", "5.12M")
    # The second connection goes on where the first one ended.
    assert ("39", "2.00M") in bars


def test_without_a_length_the_bar_counts_bytes(server, fetch, monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    server.length = False
    fetch(server)
    assert "a.pkl: 5.12MB [" in terminal.getvalue() and "%" not in terminal.getvalue()


def test_there_is_no_bar_in_a_file(server, fetch, monkeypatch):
    file = io.StringIO()
    monkeypatch.setattr(sys, "stderr", file)
    fetch(server)
    assert file.getvalue() == ""


def test_two_programs_do_not_write_the_same_download(server, fetch):
    fetch.path.parent.mkdir()
    with downloads._alone(fetch.path.with_name("a.pkl.part")):
        with pytest.raises(InputError, match="by another program"):
            fetch(server)
    fetch(server)


def test_a_proxy_of_the_environment_is_used(server, fetch, monkeypatch):
    address = "http://weights.example/a.pkl"
    monkeypatch.setenv("http_proxy", server.address)
    server.files[address] = CONTENT
    downloads.download(address, fetch.path)
    assert server.requests == [(address, None)]


def test_what_exists_is_a_path_even_under_a_known_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "ffhq").write_bytes(b"mine")
    assert sources.find("stylegan2", "ffhq") == Path("ffhq")


def test_addresses_with_the_same_last_part_are_different_files(server, tmp_path):
    server.files = {"/1/a.pkl": b"one", "/2/a.pkl?x=/b": b"two"}
    paths = [sources.find("mapper", server.address + path, str(tmp_path)) for path in server.files]
    assert [path.read_bytes() for path in paths] == [b"one", b"two"]
    assert all(path.name.endswith("-a.pkl") for path in paths)


def test_an_unknown_name_is_refused_with_the_known_ones(tmp_path):
    with pytest.raises(
        InputError, match=r"ViT-B/64 does not exist, .* one of the names ViT-B/32, "
    ):
        sources.find("clip", "ViT-B/64")
    with pytest.raises(
        InputError, match=r"nothing\.pt does not exist, expected a path or an address$"
    ):
        sources.find("arcface", "nothing.pt")


def test_known_addresses_hold_the_checksums_that_publishers_state():
    for weights in sources.KNOWN["clip"].values():
        assert weights.sha256 == weights.address.split("/")[-2]
        assert len(weights.sha256 or "") == 64
    for known in sources.KNOWN.values():
        assert all(weights.address.startswith("https://") for weights in known.values())


def test_a_known_clip_is_converted_in_one_line_with_its_tokenizer(
    server, write_hugging_face_clip, tmp_path, monkeypatch, capsys
):
    # One merge, after a symbol per byte and the same at the end of a word.
    vocabulary = gzip.compress(b"#version\nt h</w>\n")
    directory = write_hugging_face_clip(tmp_path / "source", vocab_size=515)
    model = (directory / "model.safetensors").read_bytes()
    server.files = {"/ViT-B-32.pt": model, "/bpe.txt.gz": vocabulary}
    known = {
        path: sources.Weights(server.address + path, hashlib.sha256(content).hexdigest())
        for path, content in server.files.items()
    }
    monkeypatch.setitem(sources.KNOWN["clip"], "ViT-B/32", known["/ViT-B-32.pt"])
    monkeypatch.setattr(sources, "VOCABULARY", known["/bpe.txt.gz"])
    arguments = ["clip", "ViT-B/32", str(tmp_path / "clip"), "--cache", str(tmp_path / "cache")]
    assert command_line.main(arguments) == 0
    assert capsys.readouterr().out == f"wrote {tmp_path / 'clip'}\n"
    assert load_clip(tmp_path / "clip").config.vocab_size == 515
    assert load_tokenizer(tmp_path / "clip")(["th"])[0, 1] == 512


def test_a_wrong_checksum_prints_one_line_before_the_conversion(
    server, tmp_path, monkeypatch, capsys
):
    weights = sources.Weights(f"{server.address}/a.pkl", "0" * 64)
    monkeypatch.setitem(sources.KNOWN["stylegan2"], "ffhq", weights)
    arguments = ["stylegan2", "ffhq", str(tmp_path / "ffhq"), "--cache", str(tmp_path / "cache")]
    assert command_line.main(arguments) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "SHA-256" in error
    assert not (tmp_path / "ffhq").exists()


def test_the_help_lists_the_known_names(capsys):
    for arguments in (["--help"], ["clip", "--help"]):
        with pytest.raises(SystemExit):
            command_line.main(arguments)
        assert "ViT-L/14@336px" in capsys.readouterr().out


def test_a_repository_of_hugging_face_is_a_directory_in_its_cache(tmp_path, monkeypatch):
    asked = []

    def snapshot_download(name, allow_patterns):
        asked.append((name, allow_patterns[-1]))
        if allow_patterns[-1] == "pytorch_model.bin":
            (tmp_path / "pytorch_model.bin").touch()
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    name = "openai/clip-vit-base-patch32"
    assert sources.find("clip", name) == tmp_path
    assert asked == [(name, "model.safetensors"), (name, "pytorch_model.bin")]


def test_an_error_of_hugging_face_is_reported_in_one_line(monkeypatch):
    def unreachable(*_, **__):
        raise RuntimeError("no connection\nand so on")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", unreachable)
    with pytest.raises(InputError, match=r"from Hugging Face: no connection$"):
        sources.find("clip", "openai/clip-vit-base-patch32")
