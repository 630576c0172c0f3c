"""Measures Tessera and its peers under the same load; `run.sh` starts this. Only the standard library is used.

Measured, for each peer, in each round, one peer at a time:
  cold start   from spawning the process to the first right answer, the model on the disk, its files in the page cache
  idle memory  PSS of the whole process tree, once it is idle after that answer
  load         `wrk`, one thread, on loopback, HTTP/1.1 keep-alive, one flower per request, at 1, 16 and 64 connections
               after a warm-up: requests per second, p50 and p99, errors (failed, or not 200)
  CPU          user and system time of the whole process tree over the load, divided by the requests
Units: seconds, mebibytes, milliseconds. Every figure is the median over the rounds; errors are their sum.
Left out: TLS, request logs, large bodies, batches, GPUs. The load generator shares the cores with the server.

The process tree is every descendant of this process: as their "subreaper" it also adopts what daemonises (Ray's
daemons, Triton), so that these are counted and killed like all others.
"""

import ctypes
import hashlib
import http.client
import json
import os
import re
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

LEVELS = [1, 16, 64]
WARM_UP_S = 2
# Idle is a tree that takes less than this part of one core for a second: other workers may still be starting.
IDLE_CPU = 0.2
IDLE_S_MAX = 30
START_S_MAX = 120
STOP_S_MAX = 10
POLL_S = 0.02
# What a venv may need at most, its downloads included: refused before the disk is full.
FREE_GB_MIN = 5

HERE = Path(__file__).resolve().parent
FLOWER = [5.1, 3.5, 1.4, 0.2]
# scikit-learn's answer for it: label, then the probability of each species.
RIGHT = [0, 0.98470, 0.01530, 0.00000]
OUTPUTS = ["label", "setosa", "versicolor", "virginica"]

ROWS = json.dumps({"inputs": [FLOWER]})
INSTANCES = json.dumps({"instances": [FLOWER]})
OPEN_INFERENCE = json.dumps({"inputs": [{"name": "X", "shape": [1, 4], "datatype": "FP32", "data": FLOWER}]})
# MLflow's and Tessera's, from benches/server.sh.
FRAME = os.environ.get("BODY_FRAME", "")


def predictions(answer: Any) -> list[float]:
    return [answer["predictions"][0][name] for name in OUTPUTS]


def columns_of_predictions(answer: Any) -> list[float]:
    return [answer["predictions"][name][0] for name in OUTPUTS]


def open_inference(answer: Any) -> list[float]:
    columns = {output["name"]: output["data"][0] for output in answer["outputs"]}
    return [columns[name] for name in OUTPUTS]


@dataclass(frozen=True)
class Peer:
    """In `command` and `env`: {port}, {port2}… are free ports, {bin} the venv's programs, {scratch} an empty folder of
    this start, {model} the MLflow model, {bare_model} the same without a signature."""

    name: str
    command: str
    path: str
    body: str
    answer: Callable[[Any], list[float]]
    note: str
    env: dict[str, str] = field(default_factory=dict)
    python: str = "3.11"
    free_gb: int = FREE_GB_MIN
    workers: int = 1

    @property
    def venv(self) -> str | None:
        """The name of its venv and of its file of requirements; those with more workers share it."""
        name = self.name.split("-")[0]
        return name if name != "tessera" else None


MLFLOW = (
    "{bin}/mlflow models serve --model-uri {model} --env-manager local --host 127.0.0.1 --port {port} "
    "--workers {workers}"
)
UVICORN_QUIET = {"UVICORN_ACCESS_LOG": "false", "UVICORN_LOG_LEVEL": "error"}

ONE_WORKER = [
    Peer(
        "tessera",
        "{tessera} serve --home {tessera_home} --listen 127.0.0.1:{port}",
        "/serving-endpoints/iris/invocations",
        FRAME,
        predictions,
        "defaults of `serve`: authentication, and a fresh WebAssembly instance for each request; dataframe_split",
    ),
    Peer(
        "fastapi",
        "{bin}/uvicorn app_fastapi:app --port {port} --workers {workers} --log-level error --no-access-log",
        "/predict",
        ROWS,
        predictions,
        "the floor, written by hand: async handler, no validation, uvloop, httptools",
    ),
    Peer(
        "triton",
        "{bin}/python app_triton.py {port} {port2}",
        "/v2/models/iris/infer",
        OPEN_INFERENCE,
        open_inference,
        "tritonserver of nvidia-pytriton, Python backend, dynamic batches up to 64 without delay, no metrics",
        env={"PYTRITON_HOME": "{scratch}", "LD_LIBRARY_PATH": "{python_lib}"},
        python="3.10",
    ),
    Peer(
        "mlserver",
        "{bin}/mlserver start {scratch}",
        "/v2/models/iris/infer",
        OPEN_INFERENCE,
        open_inference,
        "custom runtime, in one process (parallel_workers 0), no metrics, uvloop, httptools",
        env={
            "MLSERVER_HOST": "127.0.0.1",
            "MLSERVER_HTTP_PORT": "{port}",
            "MLSERVER_GRPC_PORT": "{port2}",
            "MLSERVER_METRICS_ENDPOINT": "",
            "MLSERVER_DEBUG": "false",
            "MLSERVER_PARALLEL_WORKERS": "0",
            "MLSERVER_MODEL_NAME": "iris",
            "MLSERVER_MODEL_IMPLEMENTATION": "app_mlserver.IrisModel",
        },
    ),
    Peer(
        "kserve",
        "{bin}/python app_kserve.py {port}",
        "/v1/models/iris:predict",
        INSTANCES,
        predictions,
        "Python ModelServer, protocol v1 (cheaper than v2), no gRPC, log level ERROR, uvloop, httptools",
        env={"KSERVE_LOGLEVEL": "ERROR"},
    ),
    Peer(
        "torchserve",
        "{bin}/python app_torchserve.py {port} {port2} {port3} {port4} {port5} {scratch}",
        "/predictions/iris",
        ROWS,
        predictions,
        "handler on ONNX Runtime, logs and system metrics off",
        free_gb=25,
    ),
    Peer(
        "litserve",
        "{bin}/python app_litserve.py {port}",
        "/predict",
        ROWS,
        predictions,
        "one API server and one worker, no access log, uvloop, httptools; fast_queue brought nothing",
    ),
    Peer(
        "mlflow",
        MLFLOW,
        "/invocations",
        FRAME,
        predictions,
        "`mlflow models serve` on the model directory Tessera serves, same body; uvloop, httptools, no access log",
        env=UVICORN_QUIET,
    ),
    Peer(
        "mlflow-lean",
        MLFLOW.replace("{model}", "{bare_model}"),
        "/invocations",
        ROWS,
        columns_of_predictions,
        "the same without the model's signature, so that no data frame is made and no schema enforced",
        env=UVICORN_QUIET,
    ),
    Peer(
        "bentoml",
        "{bin}/bentoml serve app_bentoml:IrisService --host 127.0.0.1 --port {port}",
        "/predict",
        ROWS,
        predictions,
        "async method, access log and metrics off, uvloop, httptools",
        env={"BENTOML_HOME": "{scratch}", "BENTOML_DO_NOT_TRACK": "true"},
    ),
    Peer(
        "ray",
        "{bin}/python app_ray.py {port} {scratch}",
        "/predict",
        ROWS,
        predictions,
        "a Ray of its own, one replica, RAY_SERVE_THROUGHPUT_OPTIMIZED, no dashboard, no access log",
        env={"RAY_SERVE_THROUGHPUT_OPTIMIZED": "1", "RAY_USAGE_STATS_ENABLED": "0"},
    ),
]
# More workers raise requests per second on idle cores; they do not lower the CPU of one. Left out: mlserver and kserve,
# which do not share a loaded model between workers simply, triton, which batches, and ray.
SCALABLE = ["fastapi", "torchserve", "litserve", "mlflow", "bentoml"]
PEERS = {peer.name: peer for peer in ONE_WORKER}
PEERS |= {
    f"{name}-2": replace(PEERS[name], name=f"{name}-2", workers=2, note="the same, 2 workers") for name in SCALABLE
}


def main() -> None:
    if sys.argv[1:] == ["--list"]:
        print(*PEERS)
        return
    names = os.environ.get("PEERS", "").split() or list(PEERS)
    if unknown := [name for name in names if name not in PEERS]:
        sys.exit(f"unknown peers: {' '.join(unknown)}; known are: {' '.join(PEERS)}")
    rounds = int(os.environ.get("ROUNDS", "3"))
    seconds = int(os.environ.get("SECONDS_PER_RUN", "3"))
    adopt_orphans()
    # A first Ctrl-C, or SIGTERM, ends the run and leaves what is measured; the peer is stopped on the way out.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)

    measured: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    failed: dict[str, str] = {}
    with tempfile.TemporaryDirectory(prefix="peers.") as scratch:
        model = one_thread_model(Path(scratch))
        try:
            for name in names:
                if reason := install(PEERS[name]):
                    failed[name] = reason
            for turn in range(rounds):
                for name in names:
                    if name in failed:
                        continue
                    print(f"round {turn + 1} of {rounds}: {name}", file=sys.stderr, flush=True)
                    try:
                        measured[name].append(measure(PEERS[name], model, seconds))
                    except PeerFailed as failure:
                        failed[name] = str(failure)
        except KeyboardInterrupt:
            print("interrupted: these are the figures so far", file=sys.stderr)
            sys.exit(130)
        finally:
            report(measured, failed)


class PeerFailed(Exception):
    pass


# Installing


def install(peer: Peer) -> str | None:
    """Makes the peer's venv unless it is there and of these requirements; says why it cannot."""
    if peer.venv is None:
        return None
    requirements = HERE / "requirements" / f"{peer.venv}.txt"
    venv = venv_of(peer)
    stamp = venv.with_suffix(".stamp")
    key = hashlib.sha256(requirements.read_bytes() + peer.python.encode()).hexdigest()
    if stamp.exists() and stamp.read_text() == key:
        return None
    python = interpreter(peer.python)
    if python is None:
        return f"needs Python {peer.python}, and neither uv nor pyenv has one here"
    venv.parent.mkdir(parents=True, exist_ok=True)
    if (free := shutil.disk_usage(venv.parent).free >> 30) < peer.free_gb:
        return f"not installed: needs {peer.free_gb} GiB of free disk, {free} are left"
    print(f"install: {peer.venv}", file=sys.stderr, flush=True)
    stamp.unlink(missing_ok=True)
    shutil.rmtree(venv, ignore_errors=True)
    in_venv = ["--python", str(venv / "bin" / "python"), "--compile-bytecode", "--requirement", str(requirements)]
    for command in (["uv", "venv", "--python", python, str(venv)], ["uv", "pip", "install", *in_venv]):
        done = subprocess.run([*command, "--quiet"], env=os.environ | {"UV_PYTHON_DOWNLOADS": "never"}, stderr=-1)
        if done.returncode != 0:
            return f"not installed: {' '.join(done.stderr.decode().split())[-300:]}"
    stamp.write_text(key)
    return None


def venv_of(peer: Peer) -> Path:
    return Path(os.environ["VENVS"]) / str(peer.venv)


def interpreter(version: str) -> str | None:
    """uv does not look into pyenv's folder for versions that pyenv has not activated."""
    for found in sorted(Path.home().glob(f".pyenv/versions/{version}.*/bin/python")):
        return str(found)
    find = ["uv", "python", "find", "--quiet", "--no-python-downloads", version]
    done = subprocess.run(find, capture_output=True, text=True)
    return done.stdout.strip() if done.returncode == 0 else None


# Measuring


def measure(peer: Peer, model: Path, seconds: int) -> dict[str, Any]:
    with running(peer, model) as (port, cold_s):
        await_idle()
        figures: dict[str, Any] = {"cold_s": cold_s, "idle_mib": memory_mib(), "levels": {}}
        load(peer, port, LEVELS[-1], WARM_UP_S)
        for level in LEVELS:
            before = cpu_s()
            run = load(peer, port, level, seconds)
            if not run["requests"]:
                raise PeerFailed(f"answered no request at {level} connections")
            run["cpu_ms"] = (cpu_s() - before) * 1000 / run["requests"]
            figures["levels"][level] = run
        return figures


@contextmanager
def running(peer: Peer, model: Path) -> Iterator[tuple[int, float]]:
    """The peer, from its first right answer on: its port, and how long that took."""
    results = Path(os.environ["RESULTS"])
    log = results / f"peer-{peer.name}.log"
    ports = free_ports(5)
    with tempfile.TemporaryDirectory(prefix=f"{peer.name}.") as scratch, log.open("w") as output:
        names: dict[str, Any] = {f"port{index + 1}": port for index, port in enumerate(ports)}
        names |= {
            "port": ports[0],
            "scratch": scratch,
            "model": model,
            "bare_model": f"{model}-bare",
            "workers": peer.workers,
        }
        names |= {"tessera": os.environ["SERVER_BIN"], "tessera_home": os.environ["SERVER_HOME"]}
        environment = dict(os.environ)
        if peer.venv is not None:
            programs = venv_of(peer) / "bin"
            names |= {"bin": programs, "python_lib": (programs / "python").resolve().parent.parent / "lib"}
            environment["PATH"] = f"{programs}:{environment['PATH']}"
        environment |= {"IRIS_ONNX": str(model / "model.onnx"), "WORKERS": str(peer.workers), "OMP_NUM_THREADS": "1"}
        environment |= {"TMPDIR": scratch, "PYTHONPATH": str(HERE)}
        environment |= {key: value.format(**names) for key, value in peer.env.items()}
        try:
            begin = time.monotonic()
            server = subprocess.Popen(
                peer.command.format(**names).split(),
                cwd=HERE,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
            while (wrong := ask(peer, ports[0])) is not None:
                if server.poll() is not None:
                    raise PeerFailed(f"ended with {server.returncode} instead of serving: see {log}")
                if time.monotonic() - begin > START_S_MAX:
                    raise PeerFailed(f"gave no right answer within {START_S_MAX} s ({wrong}): see {log}")
                time.sleep(POLL_S)
            yield ports[0], time.monotonic() - begin
        finally:
            stop_tree()


def ask(peer: Peer, port: int) -> str | None:
    """One request; what is wrong with its answer, if anything is."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {os.environ['TOKEN']}"}
        connection.request("POST", peer.path, peer.body, headers)
        response = connection.getresponse()
        text = response.read()
        if response.status != 200:
            return f"status {response.status}: {text[:200]!r}"
        figures = peer.answer(json.loads(text))
        right = all(abs(have - want) < 1e-4 for have, want in zip(figures, RIGHT, strict=True))
        return None if right else f"wrong answer {figures}"
    except (OSError, http.client.HTTPException, ValueError, LookupError, TypeError) as error:
        return repr(error)
    finally:
        connection.close()


def load(peer: Peer, port: int, connections: int, seconds: int) -> dict[str, Any]:
    """One run of `wrk`, as the figures of ../wrk.lua."""
    options = ["--threads", "1", "--connections", str(connections), "--duration", f"{seconds}s", "--timeout", "10s"]
    options += ["--latency", "--script", str(HERE.parent / "wrk.lua")]
    with tempfile.NamedTemporaryFile("w", prefix="body.") as bodies:
        print(peer.body, file=bodies, flush=True)
        done = subprocess.run(
            ["wrk", *options, f"http://127.0.0.1:{port}{peer.path}"],
            env=os.environ | {"BODIES": bodies.name},
            capture_output=True,
            text=True,
        )
    for line in done.stdout.splitlines():
        if line.startswith("{"):
            figures: dict[str, Any] = json.loads(line)
            return figures
    raise PeerFailed(f"wrk failed: {done.stdout} {done.stderr}")


def free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def one_thread_model(scratch: Path) -> Path:
    """A copy of the MLflow model that asks for one thread, as all others do; all use its model.onnx. Beside it,
    "-bare", another without signature."""
    model = scratch / "iris"
    options = "{intra_op_num_threads: 1, inter_op_num_threads: 1}"
    text = Path(os.environ["IRIS"], "MLmodel").read_text()
    text = text.replace("onnx_session_options: null", f"onnx_session_options: {options}")
    bare = re.sub(r"^signature:\n(  .*\n)*", "", text, flags=re.MULTILINE)
    for folder, manifest in ((model, text), (scratch / "iris-bare", bare)):
        shutil.copytree(os.environ["IRIS"], folder)
        (folder / "MLmodel").write_text(manifest)
    return model


# The process tree


def adopt_orphans() -> None:
    pr_set_child_subreaper = 36
    if ctypes.CDLL(None, use_errno=True).prctl(pr_set_child_subreaper, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "failed to become the subreaper of the peers")


def tree() -> dict[int, list[str]]:
    """All descendants: process id → the fields of its /proc stat that follow the name."""
    processes = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            processes[int(folder.name)] = (folder / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            pass  # it has just ended
    found: dict[int, list[str]] = {}
    parents = {os.getpid()}
    while parents:
        children = {pid: fields for pid, fields in processes.items() if int(fields[1]) in parents}
        found |= children
        parents = set(children)
    return found


def cpu_s() -> float:
    """User and system time of the tree, and of those in it that have ended."""
    ticks = sum(int(ticks) for fields in tree().values() for ticks in fields[11:15])
    return ticks / os.sysconf("SC_CLK_TCK")


def await_idle() -> None:
    deadline = time.monotonic() + IDLE_S_MAX
    taken = IDLE_CPU
    while taken >= IDLE_CPU and time.monotonic() < deadline:
        before = cpu_s()
        time.sleep(1)
        taken = cpu_s() - before


def memory_mib() -> float:
    """PSS: pages that processes share count once."""
    kib = 0
    for pid in tree():
        try:
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        except OSError:
            continue
        kib += sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return kib / 1024


def stop_tree() -> None:
    """SIGTERM to the peer's own process, and SIGKILL to all that is left of the tree after STOP_S_MAX."""
    interrupts = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGTERM)}
    for pid, fields in tree().items():
        if int(fields[1]) == os.getpid():
            send(pid, signal.SIGTERM)
    deadline = time.monotonic() + STOP_S_MAX
    while reap() and tree():
        if time.monotonic() > deadline:
            for pid in tree():
                send(pid, signal.SIGKILL)
        time.sleep(POLL_S)
    for number, handler in interrupts.items():
        signal.signal(number, handler)


def send(pid: int, number: signal.Signals) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        pass


def reap() -> bool:
    """Collects the children that have ended; whether others are left."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0] != 0:
            pass
        return True
    except ChildProcessError:
        return False


# Reporting


def report(measured: dict[str, list[dict[str, Any]]], failed: dict[str, str]) -> None:
    lines = {name: summary(name, rounds) for name, rounds in measured.items() if rounds}
    results = Path(os.environ["RESULTS"]) / "peers.json"
    with results.open("w") as file:
        for line in lines.values():
            file.write(json.dumps(line) + "\n")
        for name, reason in failed.items():
            file.write(json.dumps({"peer": name, "failed": reason}) + "\n")
    ours = lines.get("tessera")
    head = ["peer", *(f"req/s at {level}" for level in LEVELS), *(f"p50 / p99 ms at {level}" for level in LEVELS)]
    head += ["errors", "CPU ms/req", "cold s", "idle MiB", "Tessera: req/s", "CPU less"]
    rows = [head, *(row(line, ours) for line in lines.values())]
    widths = [max(len(cells[column]) for cells in rows) for column in range(len(head))]
    rows.insert(1, ["-" * width for width in widths])
    print()
    for cells in rows:
        print("|", " | ".join(cell.ljust(width) for cell, width in zip(cells, widths)), "|")
    print(f"\nCPU per request, and how many times better Tessera is, at {LEVELS[-1]} connections. Configurations:")
    for name in lines:
        print(f"  {name}: {PEERS[name].note}")
    for name, reason in failed.items():
        print(f"  {name} FAILED: {reason}")
    print(f"written as JSON lines to {results}")


def summary(name: str, rounds: list[dict[str, Any]]) -> dict[str, Any]:
    """The medians over the rounds."""

    def middle(values: list[float], digits: int) -> float:
        return round(statistics.median(values), digits)

    line: dict[str, Any] = {"peer": name, "workers": PEERS[name].workers, "rounds": len(rounds)}
    line["cold_s"] = middle([each["cold_s"] for each in rounds], 2)
    line["idle_mib"] = middle([each["idle_mib"] for each in rounds], 0)
    line["levels"] = []
    for level in LEVELS:
        runs = [each["levels"][level] for each in rounds]
        line["levels"].append(
            {
                "connections": level,
                "requests_per_s": middle([run["requests_per_s"] for run in runs], 0),
                "p50_ms": middle([run["p50_us"] / 1000 for run in runs], 2),
                "p99_ms": middle([run["p99_us"] / 1000 for run in runs], 2),
                "errors": sum(run["errors"] for run in runs),
                "cpu_ms_per_request": middle([run["cpu_ms"] for run in runs], 3),
            }
        )
    return line


def row(line: dict[str, Any], ours: dict[str, Any] | None) -> list[str]:
    levels, last = line["levels"], line["levels"][-1]
    cells = [line["peer"]]
    cells += [f"{level['requests_per_s']:,.0f}" for level in levels]
    cells += [f"{level['p50_ms']:.1f} / {level['p99_ms']:.1f}" for level in levels]
    cells += [str(sum(level["errors"] for level in levels)), f"{last['cpu_ms_per_request']:.3f}"]
    cells += [f"{line['cold_s']:.2f}", f"{line['idle_mib']:.0f}"]
    if ours is None or ours is line:
        return [*cells, "", ""]
    our_last = ours["levels"][-1]
    faster = our_last["requests_per_s"] / last["requests_per_s"]
    leaner = last["cpu_ms_per_request"] / our_last["cpu_ms_per_request"]
    return [*cells, f"{faster:.1f} x", f"{leaner:.1f} x"]


if __name__ == "__main__":
    main()
