import { ModelError } from './errors.js';

/** What `predict` returns where plain JSON with status 200 is not what is wanted. */
export class Response {
  constructor(body, contentType = 'application/octet-stream', status = 200) {
    this.body = encode(body);
    this.contentType = contentType;
    this.status = status;
  }

  static json(value, status = 200) {
    let text;
    try {
      text = JSON.stringify(value);
    } catch (error) {
      throw new ModelError(`failed to write the response as JSON: ${error.message}`);
    }
    if (text === undefined) throw new ModelError('failed to write the response as JSON: `predict` returned nothing');
    return new Response(text, 'application/json', status);
  }

  static text(text, status = 200) {
    return new Response(text, 'text/plain; charset=utf-8', status);
  }

  static stream(chunks, contentType, status = 200) {
    const response = new Response('', contentType, status);
    response.chunks = chunks;
    return response;
  }
}

/** Text or bytes as bytes. */
export function encode(body) {
  return typeof body === 'string' ? new TextEncoder().encode(body) : body;
}
