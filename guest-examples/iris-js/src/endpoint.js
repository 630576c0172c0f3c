// The species of a flower, from records as a web page has them.
//
// Records have their lengths in any order, in centimetres or, as `unit: "in"` says, in inches:
//
//   {"records": [{"sepal_length": 5.1, "sepal_width": 3.5, "petal_length": 1.4, "petal_width": 0.2}], "top": 2}
//
// becomes `{"predictions": [[{"species": "setosa", "probability": 0.98}, …]]}`, the `top` likeliest species of each.

import { Graph, InvalidInput, Tensor, log } from 'tessera-guest';

// In the order that the model takes.
const COLUMNS = ['sepal_length', 'sepal_width', 'petal_length', 'petal_width'];

const CM_PER_UNIT = new Map([['cm', 1], ['in', 2.54]]);

let species = [];

export function init(pkg) {
  species = pkg.assetText('labels.txt').trimEnd().split('\n');
}

export function predict(request) {
  const { records, unit = 'cm', top = 1 } = request.json() ?? {};
  const cm = CM_PER_UNIT.get(unit);
  if (cm === undefined) throw new InvalidInput(`unit is ${unit}; it can be ${Array.from(CM_PER_UNIT.keys()).join(' or ')}`);
  if (!Number.isInteger(top) || top < 1) throw new InvalidInput('top is no count: give 1 or more');
  if (!Array.isArray(records) || records.length === 0) throw new InvalidInput('give `records`, a list of at least one');
  const rows = records.map((record, index) => rowOf(index + 1, record, cm));
  const outputs = new Graph('model').run({ X: Tensor.ofRows(rows) });
  const ofSpecies = species.map((name) => outputs.get(name).values());
  log.info(`${rows.length} rows`);
  return { predictions: rows.map((_, row) => likeliest(row, ofSpecies).slice(0, top)) };
}

/** A record as the model takes it; `number` is its place for a person. */
function rowOf(number, record, cm) {
  return COLUMNS.map((column) => {
    const value = record?.[column];
    if (value === undefined) throw new InvalidInput(`record ${number} has no ${column}`);
    if (typeof value !== 'number') throw new InvalidInput(`record ${number}: ${column} is no number`);
    return value * cm;
  });
}

/** All species with their probabilities for one row, the likeliest first. */
function likeliest(row, ofSpecies) {
  const all = species.map((name, index) => ({ species: name, probability: ofSpecies[index][row] }));
  return all.sort((a, b) => b.probability - a.probability);
}
