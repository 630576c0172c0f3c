import { TesseraError } from './errors.js';
import { errorOf, host, own } from './host.js';
import { describe, isError, log, takeConsole } from './log.js';
import { Package } from './package.js';
import { Request, streamError } from './request.js';
import { encode, Response } from './response.js';

/**
 * What the host calls, made from the endpoint's module. An exception of the component model is whatever has a `payload`:
 * it becomes the error of the result.
 */
export function component(endpoint, interfaces) {
  if (typeof endpoint.predict !== 'function') {
    throw new Error('the module is no endpoint: it needs `export function predict(request)`');
  }
  Object.assign(host, interfaces);
  takeConsole();
  return {
    init() {
      try {
        refusePromise(endpoint.init?.(new Package()), 'init');
      } catch (thrown) {
        throw failed(thrown instanceof TesseraError ? thrown.message : describe(thrown));
      }
    },
    handle(request) {
      try {
        return reply(endpoint.predict(requestOf(request)));
      } catch (thrown) {
        if (thrown instanceof TesseraError) throw failed({ kind: thrown.kind, message: thrown.message });
        log.error(describe(thrown));
        const name = isError(thrown) ? thrown.name : typeof thrown;
        throw failed({ kind: 'model', message: `the endpoint's code threw ${name}; its log has the stack` });
      }
    },
  };
}

function failed(payload) {
  return Object.assign(new Error('failed'), { payload });
}

function requestOf({ path, contentType, body }) {
  const content = body.tag === 'full' ? { body: own(body.val) } : { source: body.val };
  return new Request({ path, contentType, ...content });
}

/** What it stands for would never happen: nothing runs after the call. */
function refusePromise(answer, name) {
  if (typeof answer?.then !== 'function') return;
  throw new TypeError(`\`${name}\` returned a promise: make it a function without async, for there is nothing to wait for`);
}

function reply(answer) {
  refusePromise(answer, 'predict');
  const response = answer instanceof Response ? answer : Response.json(answer);
  const { status, contentType, body, chunks } = response;
  if (chunks === undefined) return { tag: 'full', val: { status, contentType, body } };
  const opened = stream('open the response', () => host.streaming.respond(status, contentType));
  for (const chunk of chunks) stream('write the response', () => opened.write(encode(chunk)));
  return { tag: 'streamed' };
}

function stream(attempted, call) {
  try {
    return call();
  } catch (thrown) {
    throw streamError(attempted, errorOf(thrown));
  }
}
