/**
 * Guest library of Tessera: a model endpoint in JavaScript or TypeScript.
 *
 * ```js
 * import { Graph, Tensor } from 'tessera-guest';
 *
 * let label;
 *
 * export function init(pkg) {
 *   label = pkg.assetText('label.txt').trim();
 * }
 *
 * export function predict(request) {
 *   const { values } = request.json();
 *   const outputs = new Graph('model').run({ x: new Tensor([1, values.length], values) });
 *   return { [label]: Array.from(outputs.get('y').values()) };
 * }
 * ```
 *
 * Life of a guest. `tessera build` starts the engine and runs your module. At deploy `init` runs once. The memory it leaves
 * is frozen: every request gets a fresh engine that starts from this image, runs `predict` once and is gone. Nothing that a
 * request writes, variables of modules included, is seen by another.
 *
 * What `predict` returns is sent as JSON, unless it is a `Response`. What it throws ends the request: an error of this
 * library decides the HTTP status; of any other the caller learns the name, and the endpoint's log has the stack. It returns
 * no promise: there is nothing in an instance to wait for.
 *
 * There are no files, no network and no timers.
 */

/** What the project's module exports. */
export interface Endpoint {
  /** Runs once, at deploy. What it throws fails the deploy and is shown as its reason. */
  init?(pkg: Package): void;
  /** Answers one request. */
  predict(request: Request): unknown;
}

/** The element types of `wasi:nn`; the model's `bool` and `int8` travel as `u8`. */
export type TensorType = 'fp16' | 'fp32' | 'fp64' | 'bf16' | 'u8' | 'i32' | 'i64';

/** The typed arrays that hold them; fp16 and bf16 have none, and are given as bytes. */
export type Values = Float32Array | Float64Array | Uint8Array | Int32Array | BigInt64Array;

/** A dense tensor in row-major order and little-endian bytes. */
export class Tensor {
  /**
   * `values` are numbers, or bytes that are taken as they are. A typed array says its type itself; numbers are `fp32`.
   * Throws `InvalidInput` where they do not fit the shape or the type.
   */
  constructor(dims: ArrayLike<number>, values: Values | ArrayLike<number | bigint>, type?: TensorType);
  /** A matrix of rows that are equally long. */
  static ofRows(rows: number[][], type?: TensorType): Tensor;
  readonly dims: number[];
  readonly type: TensorType;
  readonly bytes: Uint8Array;
  /** The number of elements. */
  readonly length: number;
  /** The elements, in row-major order. */
  values(): Values;
  /** The elements of a matrix, row by row. */
  rows(): (number | bigint)[][];
}

/** A graph of the package, by its name in the manifest. Whether there is such a graph is known when it runs. */
export class Graph {
  constructor(name: string);
  /** Runs the graph on inputs given by name. Only during `predict`; may be called again. */
  run(inputs: Record<string, Tensor>): Outputs;
}

/** What a graph gave, in the order of the model file. */
export interface Outputs extends Iterable<Tensor> {
  /** The output of this name. */
  get(name: string): Tensor;
  names(): string[];
}

/** One input or output of a graph: a dimension is null where the size is free. */
export interface TensorInfo {
  name: string;
  type: TensorType | 'bool' | 'int8';
  dims: (number | null)[];
}

/** What `init` may read. Keep what a request needs in variables, where it is frozen ready for use. */
export interface Package {
  /** The content of a file that the manifest lists under `assets`. */
  asset(name: string): Uint8Array;
  /** The same as text. */
  assetText(name: string): string;
  /** A setting of the manifest, or of the served entity's environment, which wins. */
  setting(name: string): string | undefined;
  /** What a graph takes and gives. */
  graph(name: string): { inputs: TensorInfo[]; outputs: TensorInfo[] };
}

/** One call of the endpoint. Make one by hand for unit tests. */
export class Request {
  constructor(of?: { path?: string; contentType?: string; body?: string | Uint8Array });
  /** Which API was called, below the endpoint: `invocations`, `embeddings`, `v2/infer`, `chat/completions` and so on. */
  readonly path: string;
  /** The `Content-Type` header as sent; empty when absent. */
  readonly contentType: string;
  /** The same in lower case and without parameters. */
  readonly mediaType: string;
  /** The name of the endpoint that was called. */
  readonly endpoint: string;
  /** The number of the model version that answers. */
  readonly modelVersion: string;
  /** A setting. One that refers to a secret is only here, never in `Package.setting`. */
  setting(name: string): string | undefined;
  /** A header by its name in any case; undefined when absent, not text, or withheld (credentials). */
  header(name: string): string | undefined;
  /** The whole body; one that arrives in chunks is read to its end. */
  bytes(): Uint8Array;
  text(): string;
  json(): any;
  /** The body chunk by chunk, while it arrives (`request_body = "chunks"` in the manifest). A full body is one chunk. */
  chunks(): Iterable<Uint8Array>;
}

/** What `predict` returns where plain JSON with status 200 is not what is wanted. */
export class Response {
  constructor(body: string | Uint8Array, contentType?: string, status?: number);
  static json(value: unknown, status?: number): Response;
  static text(text: string, status?: number): Response;
  /** A body that is sent chunk by chunk, each after the client has taken the ones before it. */
  static stream(chunks: Iterable<string | Uint8Array>, contentType: string, status?: number): Response;
}

/** Lines for the endpoint's log; `console` writes there too. */
export const log: Record<'debug' | 'info' | 'warn' | 'error', (...values: unknown[]) => void>;

/** A failure with the message that the caller is shown. From `init` it fails the deploy and is shown as its reason. */
export class TesseraError extends Error {
  constructor(message: string, kind?: string);
  readonly kind: string;
}
/** The caller's input is wrong: 400. */
export class InvalidInput extends TesseraError {}
/** The endpoint has no such path: 404. */
export class NotFound extends TesseraError {}
/** Input or output exceeds a limit: 413. */
export class TooLarge extends TesseraError {}
/** The content type is not understood: 415. */
export class UnsupportedMediaType extends TesseraError {}
/** The model or the guest failed on this input: 400, for repeating the call will not help. */
export class ModelError extends TesseraError {}
/** Time ran out: 504. */
export class TimedOut extends TesseraError {}
/** The same call may succeed later: 503. */
export class Unavailable extends TesseraError {}
