"""The species of a flower, from a table as people have it.

Rows come as CSV with a header, or as JSON records; columns in any order, lengths in centimetres or, as `unit=in` says after
the content type, in inches.

    sepal_length,sepal_width,petal_length,petal_width
    5.1,3.5,1.4,0.2

becomes `{"predictions": [{"species": "setosa", "probability": 0.98}]}`.
"""

import csv
import io
import logging

import tessera_guest as tessera

# In the order that the model takes.
COLUMNS = ["sepal_length", "sepal_width", "petal_length", "petal_width"]

CM_PER_UNIT = {"cm": 1.0, "in": 2.54}


@tessera.endpoint
class Iris:
    def init(self, package: tessera.Package) -> None:
        self.species = package.asset_text("labels.txt").splitlines()
        # Which output holds the probabilities of which species.
        self.outputs = [tensor.name for tensor in package.graph("model").outputs]

    def predict(self, request: tessera.Request):
        records = records_of(request)
        rows = [row_of(number, record, unit_of(request)) for number, record in enumerate(records, 1)]
        outputs = tessera.Graph("model").run(X=tessera.Tensor.of_rows(rows))
        label, *of_species = (outputs[name].values() for name in self.outputs)
        logging.info("%d rows", len(rows))
        return {
            "predictions": [
                {"species": self.species[chosen], "probability": round(of_species[chosen][row], 6)}
                for row, chosen in enumerate(label)
            ]
        }


def records_of(request: tessera.Request) -> list[dict]:
    """The rows by the names of their columns."""
    match request.media_type:
        case "text/csv":
            records = list(csv.DictReader(io.StringIO(request.text())))
        case "application/json":
            records = request.json()
        case other:
            raise tessera.UnsupportedMediaType(f"send text/csv or application/json, not {other or 'nothing'}")
    if not isinstance(records, list) or not records:
        raise tessera.InvalidInput("there are no rows: send at least one below the header, or a list of records")
    return records


def row_of(number: int, record, cm_per_unit: float) -> list[float]:
    """A row as the model takes it; `number` is its place for a person."""
    if not isinstance(record, dict):
        raise tessera.InvalidInput(f"row {number} is no record of columns and values")
    row = []
    for column in COLUMNS:
        try:
            row.append(float(record[column]) * cm_per_unit)
        except KeyError:
            raise tessera.InvalidInput(f"row {number} has no column {column}") from None
        except (TypeError, ValueError):
            value = str(record[column])[:40]
            raise tessera.InvalidInput(f"row {number}: {column} is no number: {value}") from None
    return row


def unit_of(request: tessera.Request) -> float:
    """Centimetres per unit, from the parameter of the content type."""
    for parameter in request.content_type.split(";")[1:]:
        name, _, value = parameter.strip().partition("=")
        if name == "unit":
            if value not in CM_PER_UNIT:
                raise tessera.InvalidInput(f"unit is {value}; it can be {' or '.join(CM_PER_UNIT)}")
            return CM_PER_UNIT[value]
    return 1.0
