"""What language.sh needs: the peer, and the load.

    language.py peer MODEL THREADS SEQUENCES                       llama.cpp's server; prints its address
    language.py load URL MODEL CONCURRENCY REQUESTS PROMPT_TOKENS TOKENS    prints a line of JSON

`load` sends REQUESTS streamed completions, CONCURRENCY at a time, each on a connection of its own, with $TOKEN. The load is
threads that mostly wait: it takes little of what it measures.
"""

import concurrent.futures
import http.client
import json
import math
import os
import statistics
import sys
import threading
import time
import urllib.parse


def peer(model, threads, sequences):
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = model
    params.n_ctx = 512 * int(sequences)
    params.n_parallel = int(sequences)
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = int(threads)
    params.n_gpu_layers = 0
    params.fit_params = False
    params.verbosity = 0
    server = xllamacpp.Server(params)
    print(server.listening_address.removeprefix("http://"), flush=True)
    threading.Event().wait()


def load(url, model, concurrency, requests, prompt_tokens, tokens):
    concurrency, requests, prompt_tokens, tokens = map(int, (concurrency, requests, prompt_tokens, tokens))
    # About as many tokens as asked for, and no two prompts alike.
    prompts = [f"{index} " + "the sea " * (prompt_tokens // 2 - 1) for index in range(requests)]
    begun = time.perf_counter()
    with concurrent.futures.ThreadPoolExecutor(concurrency) as pool:
        answers = list(pool.map(lambda prompt: ask(url, model, prompt, tokens), prompts))
    seconds = time.perf_counter() - begun
    first, whole = zip(*answers)
    print(
        json.dumps(
            {
                "concurrency": concurrency,
                "answers": requests,
                "requests_per_s": requests / seconds,
                "tokens_per_s": requests * tokens / seconds,
                "first_p50_ms": statistics.median(first),
                "first_p95_ms": sorted(first)[math.ceil(0.95 * requests) - 1],
                "whole_p50_ms": statistics.median(whole),
            }
        )
    )


def ask(url, model, prompt, tokens):
    """Milliseconds to the first text, and to the end."""
    parts = urllib.parse.urlparse(url)
    body = {
        "model": model,
        "prompt": prompt,
        "max_tokens": tokens,
        "temperature": 0,
        "ignore_eos": True,
        "cache_prompt": False,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    headers = {"content-type": "application/json", "authorization": f"Bearer {os.environ.get('TOKEN', '')}"}
    connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=600)
    connection.connect()
    begun = time.perf_counter()
    connection.request("POST", parts.path + "/completions", json.dumps(body), headers)
    response = connection.getresponse()
    assert response.status == 200, response.read()
    first = None
    for line in response:
        event = line.removeprefix(b"data: ").strip()
        if not event or event == b"[DONE]":
            continue
        event = json.loads(event)
        if first is None and event["choices"] and event["choices"][0]["text"]:
            first = time.perf_counter() - begun
        if event.get("usage"):
            assert event["usage"]["completion_tokens"] == tokens, event
    whole = time.perf_counter() - begun
    connection.close()
    return 1000 * (whole if first is None else first), 1000 * whole


if __name__ == "__main__":
    {"peer": peer, "load": load}[sys.argv[1]](*sys.argv[2:])
