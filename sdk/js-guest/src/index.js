// What an endpoint imports; types/index.d.ts says what everything is for.
export {
  InvalidInput,
  ModelError,
  NotFound,
  TesseraError,
  TimedOut,
  TooLarge,
  Unavailable,
  UnsupportedMediaType,
} from './errors.js';
export { Graph } from './graph.js';
export { log } from './log.js';
export { Package } from './package.js';
export { Request } from './request.js';
export { Response } from './response.js';
export { Tensor } from './tensor.js';
