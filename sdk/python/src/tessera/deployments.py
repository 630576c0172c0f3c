"""MLflow's deployment target ``tessera``: ``mlflow deployments create -t tessera -m models:/NAME/VERSION --name ENDPOINT``.

A deployment is an endpoint. Its model is packaged (see :func:`tessera.package`), registered as ``workspace.default.NAME``
or as what ``-C model_name=CATALOG.SCHEMA.MODEL`` says, and served.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from mlflow.deployments import BaseDeploymentClient, PredictionsResponse
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE, RESOURCE_DOES_NOT_EXIST

from .client import Client
from .errors import TesseraError
from .packaging import package, request_of

#: Config of ``create`` and ``update``, and what each is.
_CONFIG = {
    "model_name": "registered model, CATALOG.SCHEMA.MODEL (workspace.default.NAME, with _ for other signs)",
    "predict_fn": "predict or predict_proba (what the model was saved with)",
    "tolerance": "allowed difference of a prediction (0.0001)",
    "wait_seconds": "how long to wait for the deploy (600); 0 returns at once",
    "workload_size": "size of the served entity",
    "workload_type": "CPU, or a GPU type",
    "scale_to_zero_enabled": "true or false (true)",
}


def target_help() -> str:
    """What ``mlflow deployments help -t tessera`` prints."""
    config = "\n".join(f"  {name}: {what}" for name, what in _CONFIG.items())
    return (
        "tessera: deploys models to a Tessera server.\n\n"
        "Target: tessera, or tessera:/HOST:PORT, tessera:/https://HOST. Else the server is that of TESSERA_HOST, or the one "
        "whose home is TESSERA_HOME (.tessera); the token is TESSERA_TOKEN, CAs are those of TESSERA_CA_CERT.\n\n"
        "A deployment is an endpoint: create packages the model (ONNX, scikit-learn, XGBoost, LightGBM, PyTorch, Keras, "
        "transformers), proves that the package predicts what the model predicts, registers and serves it. There are no "
        "endpoints above deployments.\n\n"
        f"Config (-C NAME=VALUE):\n{config}\n"
    )


def run_local(target: str, name: str, model_uri: str, flavor: str | None = None, config: dict[str, Any] | None = None) -> None:
    """Deploys to the server of this machine, which ``tessera serve`` started in TESSERA_HOME."""
    home = Path(os.environ.get("TESSERA_HOME", ".tessera"))
    if not (home / "address").is_file():
        raise MlflowException(
            f"no server has its home in {home}: start one with `tessera serve --home {home}` and try again",
            INVALID_PARAMETER_VALUE,
        )
    address = (home / "address").read_text(encoding="utf-8").strip()
    TesseraDeploymentClient(f"{target}:/{address}").create_deployment(name, model_uri, flavor, config)


class TesseraDeploymentClient(BaseDeploymentClient):
    """What MLflow's command line and ``get_deploy_client("tessera")`` call."""

    def __init__(self, target_uri: str) -> None:
        super().__init__(target_uri)  # type: ignore[no-untyped-call]
        host = target_uri.removeprefix("tessera").removeprefix(":").lstrip("/")
        with _as_mlflow():
            self._client = Client(host or None)

    def create_deployment(
        self,
        name: str,
        model_uri: str,
        flavor: str | None = None,
        config: dict[str, Any] | None = None,
        endpoint: str | None = None,
    ) -> dict[str, Any]:
        _no_endpoint(endpoint)
        with _as_mlflow():
            if self._client.endpoint(name) is not None:
                raise TesseraError(f"deployment '{name}' exists: update it, or choose another name")
            return self._deploy(name, model_uri, flavor, config)

    def update_deployment(
        self,
        name: str,
        model_uri: str | None = None,
        flavor: str | None = None,
        config: dict[str, Any] | None = None,
        endpoint: str | None = None,
    ) -> dict[str, Any]:
        _no_endpoint(endpoint)
        with _as_mlflow():
            self._existing(name)
            if model_uri is None:
                raise TesseraError("an update needs the model to serve: give its URI")
            return self._deploy(name, model_uri, flavor, config)

    def delete_deployment(self, name: str, config: dict[str, Any] | None = None, endpoint: str | None = None) -> None:
        _no_endpoint(endpoint)
        with _as_mlflow():
            # Deleting what is not there is no error, as MLflow asks of its plugins.
            if self._client.endpoint(name) is not None:
                self._client.delete(name)

    def list_deployments(self, endpoint: str | None = None) -> list[dict[str, Any]]:
        _no_endpoint(endpoint)
        with _as_mlflow():
            return self._client.endpoints()

    def get_deployment(self, name: str, endpoint: str | None = None) -> dict[str, Any]:
        _no_endpoint(endpoint)
        with _as_mlflow():
            return self._existing(name)

    def predict(self, deployment_name: str | None = None, inputs: Any = None, endpoint: str | None = None) -> Any:
        """Predictions for a DataFrame, an array or lists, a dict of arrays, or a request as the API takes it."""
        _no_endpoint(endpoint)
        if deployment_name is None:
            raise MlflowException("a prediction needs the name of the deployment", INVALID_PARAMETER_VALUE)
        with _as_mlflow():
            answer = self._client.invoke(deployment_name, _request(inputs))
        return PredictionsResponse(answer) if isinstance(answer, dict) else answer

    def explain(self, deployment_name: str | None = None, df: Any = None, endpoint: str | None = None) -> Any:
        raise MlflowException("tessera explains no predictions", INVALID_PARAMETER_VALUE)

    def create_endpoint(self, name: str, config: dict[str, Any] | None = None) -> Any:
        raise MlflowException(_FLAT, INVALID_PARAMETER_VALUE)

    def update_endpoint(self, endpoint: str, config: dict[str, Any] | None = None) -> Any:
        raise MlflowException(_FLAT, INVALID_PARAMETER_VALUE)

    def delete_endpoint(self, endpoint: str) -> None:
        raise MlflowException(_FLAT, INVALID_PARAMETER_VALUE)

    def list_endpoints(self) -> list[dict[str, Any]]:
        raise MlflowException(_FLAT, INVALID_PARAMETER_VALUE)

    def get_endpoint(self, endpoint: str) -> dict[str, Any]:
        raise MlflowException(_FLAT, INVALID_PARAMETER_VALUE)

    def _existing(self, name: str) -> dict[str, Any]:
        found = self._client.endpoint(name)
        if found is None:
            raise MlflowException(f"deployment '{name}' does not exist", RESOURCE_DOES_NOT_EXIST)
        return found

    def _deploy(self, name: str, model_uri: str, flavor: str | None, config: dict[str, Any] | None) -> dict[str, Any]:
        config = dict(config or {})
        unknown = sorted(set(config) - set(_CONFIG))
        if unknown:
            raise TesseraError(f"config {', '.join(unknown)} is not known; there are {', '.join(_CONFIG)}")
        model_name = config.pop("model_name", None) or f"workspace.default.{_plain(name)}"
        wait_seconds = float(config.pop("wait_seconds", 600))
        tolerance = float(config.pop("tolerance", 1e-4))
        predict_fn = config.pop("predict_fn", None)
        if "scale_to_zero_enabled" in config:
            config["scale_to_zero_enabled"] = str(config["scale_to_zero_enabled"]).lower() == "true"
        with tempfile.TemporaryDirectory() as scratch:
            made = package(model_uri, Path(scratch) / "package", predict_fn=predict_fn, tolerance=tolerance)
            if flavor is not None and flavor != made.flavour:
                raise TesseraError(f"the model's flavour is {made.flavour}, not {flavor}")
            version = self._client.push(made.path, model_name)
        deployed = self._client.deploy(name, model_name, version, wait_seconds=wait_seconds, **config)
        return {**deployed, "name": name, "flavor": made.flavour}


_FLAT = "a deployment of tessera is an endpoint: there are none above it"


def _no_endpoint(endpoint: str | None) -> None:
    if endpoint is not None:
        raise MlflowException(_FLAT, INVALID_PARAMETER_VALUE)


def _plain(name: str) -> str:
    return "".join(sign if sign.isalnum() or sign in "-_" else "_" for sign in name)


def _request(inputs: Any) -> dict[str, Any]:
    if isinstance(inputs, dict):
        # A request of its own, as MLflow's command line reads it from a file, or arrays by name.
        fields = ("dataframe_split", "dataframe_records", "instances", "inputs", "input", "messages", "prompt")
        return inputs if any(field in inputs for field in fields) else request_of(inputs)
    if isinstance(inputs, (pd.DataFrame, np.ndarray, list)):
        return request_of(inputs)
    raise TesseraError(f"inputs are a DataFrame, an array, a list or a dict, not {type(inputs).__name__}")


class _as_mlflow:  # noqa: N801 (a context manager that reads like a word)
    """Our errors as MLflow's, which its callers know."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, TesseraError):
            raise MlflowException(str(error), INVALID_PARAMETER_VALUE) from error
