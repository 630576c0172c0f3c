// The example with more to it: what a guest can do wrong, on demand (`{"do": …}`).
import { Graph, InvalidInput, Response } from 'tessera-guest';
import * as example from './endpoint.js';

let requestsSeen = 0;
let frozen;

export function init(pkg) {
  example.init(pkg);
  if (pkg.setting('refuse')) throw new InvalidInput('init refused, as the setting asks');
  console.log('printed by init');
  frozen = pkg.setting('frozen');
}

export function predict(request) {
  requestsSeen += 1;
  const asked = request.json();
  if (asked.do === undefined) return example.predict(request);
  console.log('printed by a request');
  return TRICKS[asked.do](asked, request);
}

const TRICKS = {
  count: () => ({ requests_seen: requestsSeen, frozen }),
  raise: (asked) => {
    console.warn('about to fail');
    return asked.missing[asked.key];
  },
  loop: () => {
    for (;;);
  },
  grow: () => {
    const hoard = [];
    for (;;) hoard.push(new Uint8Array(1 << 20).fill(1));
  },
  recurse: () => recurse(0),
  socket: () => ({ denied: typeof fetch === 'undefined' ? 'no fetch' : fetch.name }),
  random: () => ({ drawn: Math.random(), secret: crypto.randomUUID(), now: Date.now() }),
  graph: () => new Graph('other').run({}).names(),
  stream: () => Response.stream(['line 0\n', 'line 1\n', 'line 2\n'], 'text/plain'),
  info: (_, request) => ({ path: request.path, endpoint: request.endpoint, header: request.header('X-Asked') }),
};

function recurse(depth) {
  return recurse(depth + 1) + 1;
}
