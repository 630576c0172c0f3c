import { InvalidInput, ModelError, TooLarge, Unavailable } from './errors.js';
import { errorOf, host, own } from './host.js';
import { textOf } from './package.js';

// Large enough that the cost of the call vanishes, small enough that a guest which works chunk by chunk stays small.
const CHUNK_BYTES = 64 * 1024;

/** One call of the endpoint. Make one by hand for unit tests. */
export class Request {
  #body;
  #source;

  constructor({ path = 'invocations', contentType = '', body = new Uint8Array(), source } = {}) {
    this.path = path;
    this.contentType = contentType;
    this.#body = typeof body === 'string' ? new TextEncoder().encode(body) : body;
    this.#source = source;
  }

  get mediaType() {
    return this.contentType.split(';')[0].trim().toLowerCase();
  }

  get endpoint() {
    return this.setting('tessera.endpoint') ?? '';
  }

  get modelVersion() {
    return this.setting('tessera.model_version') ?? '';
  }

  setting(name) {
    return host.settings.get(name);
  }

  header(name) {
    return host.requestHeaders.get(name.toLowerCase());
  }

  bytes() {
    if (this.#source !== undefined) {
      const chunks = Array.from(this.chunks());
      this.#body = new Uint8Array(chunks.reduce((sum, chunk) => sum + chunk.length, 0));
      let end = 0;
      for (const chunk of chunks) {
        this.#body.set(chunk, end);
        end += chunk.length;
      }
      this.#source = undefined;
    }
    return this.#body;
  }

  text() {
    return textOf(this.bytes(), 'the body');
  }

  json() {
    const text = this.text();
    if (text === '') throw new InvalidInput('the body is empty; expected JSON');
    try {
      return JSON.parse(text);
    } catch (error) {
      throw new InvalidInput(`failed to parse the JSON body: ${error.message}`);
    }
  }

  *chunks() {
    if (this.#source === undefined) {
      if (this.#body.length > 0) yield this.#body;
      return;
    }
    for (let chunk = this.#read(); chunk.length > 0; chunk = this.#read()) yield chunk;
  }

  #read() {
    try {
      return own(this.#source.read(CHUNK_BYTES));
    } catch (thrown) {
      throw streamError('read the request body', errorOf(thrown));
    }
  }
}

/** The error for a `stream-error` of the host. */
export function streamError(attempted, reason) {
  if (reason === 'closed') return new Unavailable(`failed to ${attempted}: the client is gone`);
  if (reason === 'too-large') return new TooLarge(`failed to ${attempted}: over its limit in bytes`);
  return new ModelError(`failed to ${attempted}: responded before, or the status is not allowed`);
}
