"""How many more network calls a served model makes for a client that is gone.

    python pipelines/benchmarks/serve_leaving.py BUNDLE [--times 20]

A request of 32 rows of 50 steps is left in the middle, its connection closed; the same as a stream of previews. The
replica says how many calls it has made: the one that was going on when the client left is made to its end, and none
after it. Prints a table in Markdown, and ends with 1 if there were more.
"""

import argparse
import json
import socket
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

from kinfolk.serving.config import ServedModel
from kinfolk_pipelines.scripts import plain_mistakes
from kinfolk_pipelines.serving_measured import Server, serving, wait_until

ROWS, STEPS = 32, 50
STARTED_CALLS = 5  # a client leaves after that many
QUIET_S = 2.0


def description(server: Server) -> Any:
    """What the replica says of itself."""
    return server.get("/v1/models/model/")


def leave(server: Server, accept: str) -> int:
    """Calls that were made after a client had left."""
    body = json.dumps({"n": ROWS, "steps": STEPS, "solver": "ddim"}).encode()
    head = f"POST /v1/models/model/sample HTTP/1.1\r\nHost: localhost\r\nAccept: {accept}\r\n"
    head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    first = description(server)["made"]["calls"]
    with socket.create_connection(("127.0.0.1", server.port)) as connection:
        connection.sendall(head.encode() + body)
        wait_until("calls are made", lambda: bool(description(server)["made"]["calls"] >= first + STARTED_CALLS), 30)
        before = description(server)["made"]["calls"]
    time.sleep(QUIET_S)
    after = description(server)
    assert after["requests"] == 0, "the request is still there"
    return int(after["made"]["calls"] - before)


@plain_mistakes
def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path, help="of a diffusion model")
    parser.add_argument("--times", type=int, default=20)
    arguments = parser.parse_args()
    worst = 0
    print("| answer | clients who left | calls made after that, of 45 that were not |\n|---|---|---|")
    with serving([ServedModel(name="model", bundle=arguments.bundle, max_rows=ROWS)]) as server:
        for accept in ("image/png", "text/event-stream"):
            made = Counter(leave(server, accept) for _ in range(arguments.times))
            told = ", ".join(f"{calls} ({count} times)" for calls, count in sorted(made.items()))
            print(f"| {accept} | {arguments.times} | {told} |", flush=True)
            worst = max(worst, *made)
    if worst > 1:
        sys.exit("Rows were stepped on for clients who had gone.")


if __name__ == "__main__":
    main()
