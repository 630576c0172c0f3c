"""Asks an embeddings endpoint through the OpenAI client, unmodified: `openai_client.py BASE_URL TOKEN MODEL`. A JSON list
of sentences comes on stdin. To stdout goes what the client made of the answers, and of a request that is wrong."""

import json
import sys

import openai

base_url, token, model = sys.argv[1:]
client = openai.OpenAI(base_url=base_url, api_key=token, max_retries=0)
sentences = json.load(sys.stdin)

# The client asks for base64 unless told otherwise.
answer = client.embeddings.create(model=model, input=sentences)
floats = client.embeddings.create(model=model, input=sentences[0], encoding_format="float")
try:
    client.embeddings.create(model="no-such-endpoint", input="x")
    refused = None
except openai.NotFoundError as error:
    refused = error.message
print(json.dumps({
    "vectors": [datum.embedding for datum in answer.data],
    "indices": [datum.index for datum in answer.data],
    "float": floats.data[0].embedding,
    "model": answer.model,
    "prompt_tokens": answer.usage.prompt_tokens,
    "refused": refused,
}))
