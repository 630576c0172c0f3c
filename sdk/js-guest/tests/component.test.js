// The library as the host meets it: the exports of a component around modules of the tests, with a host of their own.
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { runInNewContext } from 'node:vm';

import { component } from '../src/component.js';
import { Graph, InvalidInput, Response, Tensor } from '../src/index.js';

const lines = [];
const interfaces = {
  assets: { read: (name) => new TextEncoder().encode(`text of ${name}`) },
  compute: {
    run(graph, inputs) {
      if (graph !== 'double') throw Object.assign(new Error(), { payload: { code: 'not-found', message: 'no such graph' } });
      const [{ name, dimensions, ty, data }] = inputs;
      assert.equal(ty, 'FP32');
      const doubled = new Float32Array(data.slice().buffer).map((value) => 2 * value);
      // As the engine does it: an array of another realm.
      const { Uint8Array: Bytes, Uint32Array: Numbers } = runInNewContext('({ Uint8Array, Uint32Array })');
      // fp32; a name of two letters, filled up to four bytes.
      const letters = [...`${name}2`].reduce((number, letter, at) => number + (letter.charCodeAt(0) << (8 * at)), 0);
      const heads = Numbers.from([1, doubled.byteLength, dimensions.length, ...dimensions, 2, letters]);
      return { heads, data: new Bytes(doubled.buffer) };
    },
  },
  graphInfo: { describe: () => undefined },
  logging: { log: (level, message) => lines.push(`${level} ${message}`) },
  requestHeaders: { get: (name) => (name === 'x-a' ? 'b' : undefined) },
  settings: { get: () => undefined },
  streaming: {},
};

const request = (body) => ({
  path: 'invocations',
  contentType: 'application/json',
  body: { tag: 'full', val: new TextEncoder().encode(body) },
});

function answer(endpoint, body = '{}') {
  const { init, handle } = component(endpoint, interfaces);
  init();
  const { tag, val } = handle(request(body));
  assert.equal(tag, 'full');
  return { ...val, body: new TextDecoder().decode(val.body) };
}

function failure(endpoint, body) {
  try {
    answer(endpoint, body);
  } catch (thrown) {
    return thrown.payload;
  }
  return assert.fail('it answered');
}

test('an endpoint reads its package, computes and answers JSON', () => {
  let label;
  const endpoint = {
    init: (pkg) => (label = pkg.assetText('label.txt')),
    predict(request) {
      const { values } = request.json();
      const outputs = new Graph('double').run({ x: new Tensor([1, values.length], values) });
      return { label, values: Array.from(outputs.get('x2').values()), header: request.header('X-A') };
    },
  };
  const { status, contentType, body } = answer(endpoint, '{"values": [1, 2.5]}');
  assert.deepEqual([status, contentType], [200, 'application/json']);
  assert.deepEqual(JSON.parse(body), { label: 'text of label.txt', values: [2, 5], header: 'b' });
});

test('an error of the library goes to the caller with its kind', () => {
  const refuse = () => {
    throw new InvalidInput('no rows');
  };
  assert.deepEqual(failure({ predict: refuse }), { kind: 'invalid-input', message: 'no rows' });
  const { kind, message } = failure({ predict: (request) => request.json() }, '{');
  assert.equal(kind, 'invalid-input');
  assert.match(message, /^failed to parse the JSON body/);
  const missing = failure({ predict: () => new Graph('other').run({}) });
  assert.deepEqual(missing, { kind: 'model', message: 'failed to compute graph `other`: no such graph' });
});

test('of any other error the caller learns the name and the log the rest', () => {
  lines.length = 0;
  const { kind, message } = failure({ predict: () => JSON.parse('secret') });
  assert.deepEqual([kind, message], ['model', "the endpoint's code threw SyntaxError; its log has the stack"]);
  assert.match(lines.join('\n'), /^error SyntaxError: .*secret/s);
  assert.match(failure({ predict: async () => 1 }).message, /TypeError/);
});

test('a failure of init is its reason', () => {
  const { init } = component({ init: () => undefined.x, predict: () => 1 }, interfaces);
  assert.throws(init, (thrown) => /TypeError/.test(thrown.payload));
});

test('an init that returns a promise is refused', () => {
  const { init } = component({ init: async () => {}, predict: () => 1 }, interfaces);
  assert.throws(init, (thrown) => /`init` returned a promise: make it a function without async/.test(thrown.payload));
});

test('a response may be anything', () => {
  const { status, contentType, body } = answer({ predict: () => Response.text('grüß', 202) });
  assert.deepEqual([status, contentType, body], [202, 'text/plain; charset=utf-8', 'grüß']);
  assert.match(failure({ predict: () => undefined }).message, /returned nothing/);
});

test('tensors are checked when they are made', () => {
  assert.deepEqual(new Tensor([2], [1, 2], 'i64').values(), BigInt64Array.of(1n, 2n));
  assert.deepEqual(Tensor.ofRows([[1, 2], [3, 4]]).rows(), [[1, 2], [3, 4]]);
  assert.equal(new Tensor([2], new Float64Array(2)).type, 'fp64');
  assert.equal(new Tensor([2], new Uint8Array(4), 'fp16').length, 2);
  const wrong = [
    [() => new Tensor([3], [1, 2]), /needs 3 values, but 2 values \(8 bytes of fp32\)/],
    [() => new Tensor([1], ['1']), /value 0 is no number that fits fp32/],
    [() => new Tensor([1], [300], 'u8'), /value 0 is no number that fits u8/],
    [() => new Tensor([1], [1.5], 'i32'), /value 0 is no number that fits i32/],
    [() => new Tensor([1], [1], 'q'), /there is no element type 'q'/],
    [() => Tensor.ofRows([[1], [1, 2]]), /row 1 has 2 values, row 0 has 1/],
  ];
  for (const [make, message] of wrong) assert.throws(make, { message });
});
