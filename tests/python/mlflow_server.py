"""Serves MLflow models with MLflow's own scoring server, all in one process: one server per model would take 300 MB each.

    python mlflow_server.py MODELS

`http://127.0.0.1:PORT/{model}/invocations` answers for `MODELS/{model}`. The first line on stdout is the port. Ends when
its stdin is closed, so that it never outlives the test that started it.
"""

import logging
import os
import socket
import sys
import threading
import warnings
from pathlib import Path

import mlflow.pyfunc
import uvicorn
from fastapi import FastAPI
from mlflow.pyfunc import scoring_server

logging.disable(logging.WARNING)
warnings.simplefilter("ignore")


def end_with_stdin():
    sys.stdin.read()
    os._exit(0)


app = FastAPI()
for folder in sorted(Path(sys.argv[1]).iterdir()):
    app.mount(f"/{folder.name}", scoring_server.init(mlflow.pyfunc.load_model(str(folder))))

listening = socket.socket()
listening.bind(("127.0.0.1", 0))
listening.listen()
threading.Thread(target=end_with_stdin, daemon=True).start()
print(listening.getsockname()[1], flush=True)
uvicorn.Server(uvicorn.Config(app, log_level="error")).run(sockets=[listening])
