"""MLServer: a custom runtime, the Open Inference protocol. `peers.py` gives its settings as variables."""

from iris import OUTPUTS, Iris
from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceRequest, InferenceResponse


class IrisModel(MLModel):
    async def load(self) -> bool:
        self.model = Iris()
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        columns = self.model.run(NumpyCodec.decode_input(payload.inputs[0]))
        outputs = [NumpyCodec.encode_output(name, column) for name, column in zip(OUTPUTS, columns)]
        return InferenceResponse(model_name=self.name, outputs=outputs)
