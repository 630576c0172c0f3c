/** A failure with the message that the caller is shown; see types/index.d.ts. */
export class TesseraError extends Error {
  constructor(message, kind = 'model') {
    super(message);
    this.kind = kind;
  }
}

const error = (name, kind) =>
  class extends TesseraError {
    constructor(message) {
      super(message, kind);
      this.name = name;
    }
  };

export const InvalidInput = error('InvalidInput', 'invalid-input');
export const NotFound = error('NotFound', 'not-found');
export const TooLarge = error('TooLarge', 'too-large');
export const UnsupportedMediaType = error('UnsupportedMediaType', 'unsupported-media-type');
export const ModelError = error('ModelError', 'model');
export const TimedOut = error('TimedOut', 'timeout');
export const Unavailable = error('Unavailable', 'unavailable');
