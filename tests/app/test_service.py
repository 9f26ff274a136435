import base64
import io
import json
import signal
import threading
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

TIMEOUT = 120


def call(url, name, *data):
    """Calls a function of the API as curl would."""
    request = urllib.request.Request(
        f"{url}/gradio_api/call/{name}",
        json.dumps({"data": data}).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=TIMEOUT) as response:
        event = json.load(response)["event_id"]
    kind = ""
    with urllib.request.urlopen(f"{url}/gradio_api/call/{name}/{event}", timeout=TIMEOUT) as lines:
        for line in map(bytes.decode, lines):
            if line.startswith("event: "):
                kind = line.removeprefix("event: ").strip()
            elif line.startswith("data: ") and kind in ("complete", "error"):
                answer = json.loads(line.removeprefix("data: "))
                if kind == "error":
                    raise RuntimeError(answer)
                return answer[0]
    raise AssertionError("the answer is missing")


def pixels(answer):
    content = base64.b64decode(answer["image"].partition(",")[2])
    return np.asarray(Image.open(io.BytesIO(content)), np.int16)


def test_the_service_is_healthy(service):
    assert service.health()["status"] == "ok"


def test_programs_edit_over_http_and_chain_by_latents(service):
    face = call(service.url, "face", 7)
    edited = call(service.url, "instant", "a person with a beard", 7, 4.0, "a person", "")
    assert np.abs(pixels(face) - pixels(edited)).mean() > 2
    same = call(
        service.url, "instant", "a person with a beard", 0, 0.0, "a person", edited["latents"]
    )
    assert np.abs(pixels(same) - pixels(edited)).max() <= 1


@pytest.mark.parametrize(
    "data",
    [
        ("", 0, 4.0, "a person", ""),
        ("x" * 5000, 0, 4.0, "a person", ""),
        ("a person with a hat", -1, 4.0, "a person", ""),
        ("a person with a hat", 0, 4.0, "a person", "rubbish"),
    ],
)
def test_rubbish_gets_an_error_and_harms_nobody(service, data):
    with pytest.raises(RuntimeError):
        call(service.url, "instant", *data)
    assert call(service.url, "face", 1)["image"]


def test_files_outside_are_out_of_reach(service):
    for path in ("/etc/passwd", "pyproject.toml", "../../etc/passwd"):
        with pytest.raises(urllib.error.HTTPError):
            urllib.request.urlopen(f"{service.url}/gradio_api/file={path}", timeout=TIMEOUT)


def test_a_request_that_is_too_large_is_refused(service):
    request = urllib.request.Request(
        f"{service.url}/gradio_api/call/face",
        b" " * 20_000_000,
        {"Content-Type": "application/json"},
    )
    with pytest.raises((urllib.error.HTTPError, ConnectionError, urllib.error.URLError)):
        urllib.request.urlopen(request, timeout=TIMEOUT)
    assert service.health()["status"] == "ok"


def test_twenty_clients_at_once_all_get_their_own_answers(service):
    texts = ["a person with a beard", "a person with sunglasses"]
    requests = [(texts[i % 2], i % 5) for i in range(60)]
    alone = {
        (text, seed): pixels(call(service.url, "instant", text, seed, 4.0, "a person", ""))
        for text, seed in sorted(set(requests))
    }

    def ask(request):
        text, seed = request
        return pixels(call(service.url, "instant", text, seed, 4.0, "a person", ""))

    def vanish(_):
        # Asks, and never comes for the answer.
        data = json.dumps({"data": [texts[0], 3, 4.0, "a person", ""]}).encode()
        request = urllib.request.Request(
            f"{service.url}/gradio_api/call/instant", data, {"Content-Type": "application/json"}
        )
        urllib.request.urlopen(request, timeout=TIMEOUT).close()

    with ThreadPoolExecutor(23) as pool:
        vanished = [pool.submit(vanish, i) for i in range(2)]
        rubbish = pool.submit(call, service.url, "instant", None, "x", "y", 3, 4)
        answers = list(pool.map(ask, requests))
        for future in vanished:
            future.result()
        with pytest.raises(Exception):  # noqa: B017
            rubbish.result()
    for request, answer in zip(requests, answers, strict=True):
        # A batch may round otherwise.
        assert np.abs(answer - alone[request]).max() <= 1


def test_on_sigterm_a_running_edit_finishes(start_service):
    service = start_service("--nowarmup")
    answers = []

    def edit():
        answers.append(
            call(service.url, "optimize", "a person with a hat", 0, 20, 0.35, "a person", [], "")
        )

    client = threading.Thread(target=edit)
    client.start()
    while service.health()["edits"] == 0:
        time.sleep(0.05)
    service.process.send_signal(signal.SIGTERM)
    client.join(TIMEOUT)
    assert answers and answers[0]["image"]
    assert service.process.wait(TIMEOUT) == 0
