"""Times the served page: python benchmarks/page.py, on an otherwise idle machine.

Starts app.py with the avatars and sends requests to its HTTP API.
"""

import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).parents[1]
CLIENTS, REQUESTS = 20, 200
TEXT = "a person with sunglasses"


def main() -> None:
    """Starts the service and prints one line per measurement."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    begun = time.perf_counter()
    service = subprocess.Popen([sys.executable, "app.py", f"--port={port}"], cwd=ROOT)
    try:
        while not responds(url):
            time.sleep(0.05)
        print(f"the page opens {time.perf_counter() - begun:.1f} s after the start")
        instant(url, 0, None)
        taken, cpu = time.perf_counter() - begun, cpu_seconds(service.pid)
        print(f"first instant edit: {taken:.1f} s after the start ({cpu:.1f} s of CPU time)")
        # Waits until the background compilations have compiled it.
        optimize(url, steps=1)
        print(f"optimization of one step: {seconds(lambda: optimize(url, steps=1)):.2f} s")

        time_instant(url, "any_text")
        time_instant(url, "directions")
    finally:
        service.send_signal(signal.SIGTERM)
        service.wait()


def time_instant(url: str, using: str) -> None:
    """Times instant edits of one client and of many concurrent clients."""
    instant(url, 0, 0.0, using)
    single = [seconds(lambda i=i: instant(url, 0, i / 10, using)) for i in range(50)]
    print(f"instant edit, {using}: {1000 * statistics.median(single):.0f} ms (median of 50)")

    def edit_all() -> None:
        with ThreadPoolExecutor(CLIENTS) as pool:
            list(pool.map(lambda i: instant(url, i % 50, 1.0, using), range(REQUESTS)))

    print(f"{CLIENTS} clients, {using}: {REQUESTS / seconds(edit_all):.1f} instant edits/s")


def responds(url: str) -> bool:
    """Returns whether the page responds."""
    try:
        urllib.request.urlopen(url, timeout=5).read()
    except OSError:
        return False
    return True


def cpu_seconds(process: int) -> float:
    """Returns the CPU time of a process, which other processes hardly affect."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def instant(url: str, seed: int, strength: float | None, using: str = "any_text") -> None:
    """Requests an instant edit."""
    call(url, "instant", TEXT, seed, strength, "a person", "", None, using)


def optimize(url: str, steps: int) -> None:
    """Requests an optimization."""
    call(url, "optimize", TEXT, 0, steps, 0.35, "a person", [], "")


def call(url: str, name: str, *data: object) -> None:
    """Calls a function of the API and waits for the result."""
    body = json.dumps({"data": data}).encode()
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(f"{url}/gradio_api/call/{name}", body, headers)
    with urllib.request.urlopen(request) as response:
        event = json.load(response)["event_id"]
    with urllib.request.urlopen(f"{url}/gradio_api/call/{name}/{event}") as lines:
        if b"event: complete" not in lines.read():
            raise RuntimeError(f"{name} failed")


def seconds(run: Callable[[], object]) -> float:
    """Returns the time that a function takes."""
    begun = time.perf_counter()
    run()
    return time.perf_counter() - begun


if __name__ == "__main__":
    main()
