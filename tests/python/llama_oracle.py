"""Greedy answers of llama.cpp's own server, which xllamacpp embeds: one sequence at a time, one thread, nothing cached.

Reads {"prompts": [text], "max_tokens": n} from standard input. Prints for each answer a list with, for each of its tokens,
the three most likely ones and the logarithms of their probabilities: the first is the token. Usage: llama_oracle.py MODEL
"""

import json
import sys
import urllib.request

import xllamacpp

params = xllamacpp.CommonParams()
params.model.path = sys.argv[1]
params.n_ctx = 512
params.n_parallel = 1
params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
params.warmup = False
params.fit_params = False
params.n_gpu_layers = 0
server = xllamacpp.Server(params)

asked = json.load(sys.stdin)
answers = []
for prompt in asked["prompts"]:
    body = {
        "prompt": prompt,
        "n_predict": asked["max_tokens"],
        "temperature": 0,
        "cache_prompt": False,
        "n_probs": 3,
    }
    # The server's own API: the one in its Python class answers as OpenAI does, without tokens.
    url = server.listening_address + "/completion"
    request = urllib.request.Request(url, json.dumps(body).encode(), {"content-type": "application/json"})
    with urllib.request.urlopen(request) as response:
        answer = json.load(response)
    tokens = [[(top["id"], top["logprob"]) for top in token["top_logprobs"]] for token in answer["completion_probabilities"]]
    # The token that ended the answer is not part of it.
    answers.append(tokens[:-1] if answer["stop_type"] == "eos" else tokens)
print(json.dumps(answers))
