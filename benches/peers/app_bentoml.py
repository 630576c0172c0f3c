"""BentoML: an async method, because a thread per call costs more than the model."""

import os
from typing import Any

import bentoml
from iris import Iris


@bentoml.service(
    workers=int(os.environ["WORKERS"]),
    logging={"access": {"enabled": False}},
    metrics={"enabled": False},
)
class IrisService:
    def __init__(self) -> None:
        self.model = Iris()

    @bentoml.api
    async def predict(self, inputs: list[list[float]]) -> dict[str, Any]:
        return {"predictions": self.model.predictions(inputs)}
