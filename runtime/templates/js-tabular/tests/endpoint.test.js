// What the endpoint does before and after the model, without a server: `tessera build && npm install && npm test`.
import assert from 'node:assert/strict';
import { test } from 'node:test';

import { predictions, rowsOf } from '../src/endpoint.js';

test('rows are taken as they are, and what is none is named', () => {
  assert.deepEqual(rowsOf({ rows: [[5.1, 3.5, 1.4, 0.2]] }), [[5.1, 3.5, 1.4, 0.2]]);
  assert.throws(() => rowsOf({}), /give `rows`/);
  assert.throws(() => rowsOf({ rows: [[1, 2, 3, 4], [1]] }), /row 1 is not/);
});

test('the class gets its name and its probability', () => {
  const named = predictions(['no', 'yes'], [1n, 0n], [[0.2, 0.9], [0.8, 0.1]]);
  assert.deepEqual(named, [{ label: 'yes', probability: 0.8 }, { label: 'no', probability: 0.9 }]);
});
