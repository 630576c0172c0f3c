"""The floor: what a person writes by hand when the model and its request are known. No validation, no copies."""

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from iris import Iris

app = FastAPI(openapi_url=None)
model = Iris()


@app.post("/predict")
async def predict(request: Request) -> JSONResponse:
    body = await request.json()
    return JSONResponse({"predictions": model.predictions(body["inputs"])})
