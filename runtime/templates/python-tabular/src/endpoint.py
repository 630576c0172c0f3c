"""Rows of numbers in, a label for each out.

    {"rows": [[5.1, 3.5, 1.4, 0.2]]}  →  {"predictions": [{"label": "setosa", "probability": 0.98}]}
"""

import tessera_guest as tessera

# What the model takes: sepal length and width, petal length and width, in centimetres.
COLUMNS = 4


@tessera.endpoint
class Classifier:
    def init(self, package: tessera.Package) -> None:
        """Runs once, at deploy. The memory it leaves is what every request starts from."""
        # The names of the classes, in the model's order.
        self.labels = package.asset_text("labels.txt").splitlines()

    def predict(self, request: tessera.Request):
        """Runs for each request, in an interpreter that has seen no other."""
        rows = rows_of(request.json())
        outputs = tessera.Graph("model").run(X=tessera.Tensor.of_rows(rows))
        # The model gives the class of each row, then for each class the probabilities of the rows.
        classes, *probabilities = (tensor.values() for tensor in outputs.values())
        return {"predictions": predictions(self.labels, classes, probabilities)}


def rows_of(body) -> list[list[float]]:
    """The rows of a request's body, checked."""
    rows = body.get("rows") if isinstance(body, dict) else None
    if not isinstance(rows, list) or not rows:
        raise tessera.InvalidInput("give `rows`, a list of at least one row")
    for index, row in enumerate(rows):
        if not isinstance(row, list) or len(row) != COLUMNS:
            raise tessera.InvalidInput(f"row {index} is not a list of {COLUMNS} numbers")
    return rows


def predictions(labels: list[str], classes: list[int], probabilities: list[list[float]]) -> list[dict]:
    """Names the classes that the model chose."""
    return [
        {"label": labels[chosen], "probability": probabilities[chosen][row]} for row, chosen in enumerate(classes)
    ]
