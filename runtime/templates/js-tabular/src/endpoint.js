// Rows of numbers in, a label for each out.
//
//   {"rows": [[5.1, 3.5, 1.4, 0.2]]}  →  {"predictions": [{"label": "setosa", "probability": 0.98}]}

import { Graph, InvalidInput, Tensor } from 'tessera-guest';

// What the model takes: sepal length and width, petal length and width, in centimetres.
const COLUMNS = 4;

// The names of the classes, in the model's order.
let labels = [];

/** Runs once, at deploy. The memory it leaves is what every request starts from. */
export function init(pkg) {
  labels = pkg.assetText('labels.txt').trimEnd().split('\n');
}

/** Runs for each request, in an engine that has seen no other. */
export function predict(request) {
  const rows = rowsOf(request.json());
  const outputs = new Graph('model').run({ X: Tensor.ofRows(rows) });
  // The model gives the class of each row, then for each class the probabilities of the rows.
  const [classes, ...probabilities] = Array.from(outputs, (tensor) => tensor.values());
  return { predictions: predictions(labels, classes, probabilities) };
}

/** The rows of a request's body, checked. */
export function rowsOf(body) {
  const rows = body?.rows;
  if (!Array.isArray(rows) || rows.length === 0) throw new InvalidInput('give `rows`, a list of at least one row');
  const wrong = rows.findIndex((row) => !Array.isArray(row) || row.length !== COLUMNS);
  if (wrong >= 0) throw new InvalidInput(`row ${wrong} is not a list of ${COLUMNS} numbers`);
  return rows;
}

/** Names the classes that the model chose; they are 64-bit integers, which JavaScript keeps apart from other numbers. */
export function predictions(labels, classes, probabilities) {
  return Array.from(classes, (chosen, row) => ({
    label: labels[Number(chosen)],
    probability: probabilities[Number(chosen)][row],
  }));
}
