"""The REST API of a server: what the command line does, from Python, with the standard library alone."""

from __future__ import annotations

import json
import os
import ssl
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

from .errors import ServerError, TesseraError

#: Seconds for one call of the control plane; finalizing a version hashes its files.
_CALL_SECONDS = 120
#: Seconds for one invocation; the server's own limit is shorter.
_INVOKE_SECONDS = 3600
#: Seconds between two looks at a deploy.
_LOOK_SECONDS = 0.1


class Client:
    """A server, and who we are there.

    Args:
        host: its address; else ``TESSERA_HOST``, else what the server of ``TESSERA_HOME`` (``.tessera``) wrote there.
        token: else ``TESSERA_TOKEN``, else the administrator's of that home, if it is that server.
        ca_cert: file of CAs to trust instead of the system's; else ``TESSERA_CA_CERT``.
    """

    def __init__(self, host: str | None = None, token: str | None = None, *, ca_cert: str | None = None) -> None:
        home = Path(os.environ.get("TESSERA_HOME", ".tessera"))
        local = _text(home / "address")
        address = host or os.environ.get("TESSERA_HOST") or local
        if not address:
            raise TesseraError(f"no server has its home in {home}: start one, or set TESSERA_HOST")
        self.host = _address(address)
        self._token = token or os.environ.get("TESSERA_TOKEN")
        # A token of this machine's server must not be sent to whatever TESSERA_HOST names.
        if not self._token and local and _address(local) == self.host:
            self._token = _text(home / "admin.token")
        if not self._token:
            raise TesseraError(f"no token for {self.host}: set TESSERA_TOKEN")
        trusted = ca_cert or os.environ.get("TESSERA_CA_CERT")
        handlers: list[Any] = [_NoRedirect()]
        if self.host.startswith("https:"):
            handlers.append(urllib.request.HTTPSHandler(context=ssl.create_default_context(cafile=trusted)))
        # No proxy reaches our own machine.
        if any(self.host.split("//")[1].startswith(name) for name in ("localhost", "127.0.0.1", "[::1]")):
            handlers.append(urllib.request.ProxyHandler({}))
        self._opener = urllib.request.build_opener(*handlers)

    def push(self, directory: str | os.PathLike[str], name: str, *, description: str | None = None) -> str:
        """Registers a package as a new version of ``CATALOG.SCHEMA.MODEL``, which is made if need be.

        Returns:
            the version.
        """
        catalog, schema, model = _model_name(name)
        root = Path(directory)
        files = sorted(path for path in root.rglob("*") if path.is_file() and not _is_hidden(path.relative_to(root)))
        if link := next((path for path in files if path.is_symlink()), None):
            raise TesseraError(f"'{link}' is a symbolic link, and may point anywhere: put the file itself there")
        if not any((root / manifest).is_file() for manifest in ("tessera.toml", "MLmodel")):
            raise TesseraError(f"'{root}' is no package: it holds neither tessera.toml nor MLmodel")
        try:
            self.call("POST", "/api/2.0/mlflow/unity-catalog/registered-models/create", {"name": name})
        except ServerError as error:
            if error.code != "RESOURCE_ALREADY_EXISTS":
                raise
        about = {"name": name, "source": str(root.resolve()), "description": description, "feature_deps": ""}
        made = self.call("POST", "/api/2.0/mlflow/unity-catalog/model-versions/create", about)
        version = str(made["model_version"]["version"])
        try:
            for path in files:
                parts = (catalog, schema, model, version, *path.relative_to(root).parts)
                place = "/".join(quote(part, safe="") for part in parts)
                self._send("PUT", f"/api/2.0/fs/files/Models/{place}?overwrite=true", path.read_bytes(), _OCTETS)
            self.call("POST", "/api/2.0/mlflow/unity-catalog/model-versions/finalize", {"name": name, "version": version})
        except Exception:
            # A version that was not finalized serves nobody.
            self.call("DELETE", "/api/2.0/mlflow/unity-catalog/model-versions/delete", {"name": name, "version": version})
            raise
        return version

    def deploy(
        self, endpoint: str, model: str, version: str, *, wait_seconds: float = 600, **entity: Any
    ) -> dict[str, Any]:
        """Makes an endpoint that serves this version, or makes the one that exists serve it.

        Args:
            wait_seconds: how long to wait for it; 0 returns at once.
            entity: further fields of the served entity, such as ``scale_to_zero_enabled`` and ``workload_type``.

        Raises:
            ServerError: the deploy failed; the message holds the server's reason.
        """
        served = {"entity_name": model, "entity_version": version, "scale_to_zero_enabled": True, **entity}
        config = {"served_entities": [served]}
        if self.endpoint(endpoint) is None:
            self.call("POST", "/api/2.0/serving-endpoints", {"name": endpoint, "config": config})
        else:
            self.call("PUT", f"/api/2.0/serving-endpoints/{quote(endpoint, safe='')}/config", config)
        return self.wait(endpoint, wait_seconds)

    def wait(self, endpoint: str, seconds: float) -> dict[str, Any]:
        """Waits until an endpoint's deploy has ended.

        Raises:
            ServerError: it failed, or did not end in time.
        """
        until = time.monotonic() + seconds
        while True:
            found = self.endpoint(endpoint)
            if found is None:
                raise ServerError(f"endpoint '{endpoint}' was deleted while it was deployed", 404)
            state = found.get("state", {})
            if state.get("config_update") == "UPDATE_FAILED":
                raise ServerError(f"the deploy of '{endpoint}' failed: {_reason(found)}")
            if state.get("config_update") == "NOT_UPDATING" and state.get("ready") == "READY" or not seconds:
                return found
            if time.monotonic() > until:
                raise ServerError(f"the deploy of '{endpoint}' did not end within {seconds:g} seconds")
            time.sleep(_LOOK_SECONDS)

    def endpoint(self, name: str) -> dict[str, Any] | None:
        """An endpoint as the API describes it; ``None`` if there is none of this name."""
        try:
            return self.call("GET", f"/api/2.0/serving-endpoints/{quote(name, safe='')}")
        except ServerError as error:
            if error.status == 404:
                return None
            raise

    def endpoints(self) -> list[dict[str, Any]]:
        """All endpoints that we may see."""
        return list(self.call("GET", "/api/2.0/serving-endpoints").get("endpoints", []))

    def delete(self, endpoint: str) -> None:
        """Deletes an endpoint; the model stays registered."""
        self.call("DELETE", f"/api/2.0/serving-endpoints/{quote(endpoint, safe='')}")

    def invoke(self, endpoint: str, request: dict[str, Any]) -> Any:
        """Sends one request as it is, and returns the answer as it is."""
        path = f"/serving-endpoints/{quote(endpoint, safe='')}/invocations"
        return json.loads(self._send("POST", path, json.dumps(request).encode(), _JSON, _INVOKE_SECONDS))

    def call(self, method: str, path: str, body: Any = None, **query: str) -> dict[str, Any]:
        """One call of the API, JSON in and out."""
        path += f"?{urlencode(query)}" if query else ""
        text = self._send(method, path, None if body is None else json.dumps(body).encode(), _JSON)
        return json.loads(text) if text else {}

    def _send(self, method: str, path: str, body: bytes | None, content_type: str, seconds: float = _CALL_SECONDS) -> bytes:
        headers = {"Authorization": f"Bearer {self._token}", "Content-Type": content_type}
        request = urllib.request.Request(self.host + path, body, headers, method=method)
        try:
            with self._opener.open(request, timeout=seconds) as response:
                return bytes(response.read())
        except urllib.error.HTTPError as error:
            raise _refusal(error, method, path) from None
        except (urllib.error.URLError, OSError) as error:
            raise ServerError(f"no answer from {self.host}: {getattr(error, 'reason', error)}") from error


_JSON = "application/json"
_OCTETS = "application/octet-stream"


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirect would take the token along to wherever it points."""

    def redirect_request(self, *_: Any) -> None:
        return None


def _refusal(error: urllib.error.HTTPError, method: str, path: str) -> ServerError:
    text = error.read().decode("utf-8", "replace")
    try:
        answer = json.loads(text)
        return ServerError(f"{answer['error_code']}: {answer['message']} ({error.code})", error.code, answer["error_code"])
    except (ValueError, KeyError, TypeError):
        return ServerError(f"{method} {path} was answered {error.code} without an API error: {text[:200]}", error.code)


def _reason(endpoint: dict[str, Any]) -> str:
    pending = endpoint.get("pending_config") or endpoint.get("config") or {}
    messages = [
        entity.get("state", {}).get("deployment_state_message", "") for entity in pending.get("served_entities", [])
    ]
    return "; ".join(filter(None, messages)) or "see `tessera logs`"


def _text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8").strip() or None
    except OSError:
        return None


def _address(address: str) -> str:
    address = address.strip().rstrip("/")
    return address if "://" in address else f"http://{address}"


def _is_hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def _model_name(name: str) -> tuple[str, str, str]:
    parts = name.split(".")
    if len(parts) != 3 or not all(parts) or "/" in name:
        raise TesseraError(f"'{name}' is no name of a model: it has three parts, like main.default.iris")
    return parts[0], parts[1], parts[2]
