"""Calls functions of the page's HTTP API as curl does."""

import json
import urllib.request

# Only ends tests that hang.
TIMEOUT = 600


def post(url, name, data, cookie=""):
    """Requests a call and returns the id of its event."""
    request = urllib.request.Request(
        f"{url}/gradio_api/call/{name}",
        json.dumps({"data": data}).encode(),
        {"Content-Type": "application/json", "Cookie": cookie},
    )
    with urllib.request.urlopen(request, timeout=TIMEOUT) as response:
        return json.load(response)["event_id"]


def call(url, name, *data, cookie=""):
    """Calls a function and returns its result."""
    event = post(url, name, data, cookie)
    request = urllib.request.Request(
        f"{url}/gradio_api/call/{name}/{event}", headers={"Cookie": cookie}
    )
    kind = ""
    with urllib.request.urlopen(request, timeout=TIMEOUT) as lines:
        for line in map(bytes.decode, lines):
            if line.startswith("event: "):
                kind = line.removeprefix("event: ").strip()
            elif line.startswith("data: ") and kind in ("complete", "error"):
                result = json.loads(line.removeprefix("data: "))
                if kind == "error":
                    raise RuntimeError(result)
                return result[0]
    raise AssertionError("the response has no result")
